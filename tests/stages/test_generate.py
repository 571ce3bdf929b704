"""The generation loop, on the toy model in ONNX Runtime."""

import numpy as np
import pytest

from pipelines.errors import StageError
from stages.artifacts import DeviceModel
from stages.runtimes.generate import generate, image_rows, prefill
from stages.runtimes.ort import OnnxSession
from tests.converted import CONTEXT, converted

HIDDEN, IMAGE = 64, 258


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> OnnxSession:
    return converted(tmp_path_factory.mktemp("toy"), bits=0).session


@pytest.fixture(scope="module")
def features(session) -> np.ndarray:
    return session.encode(np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))


@pytest.fixture(scope="module")
def ids(session) -> list[int]:
    tokens = session.description["image_tokens"]
    return [*[IMAGE] * tokens, 10, 20, 30, 256]


def test_chunks_change_nothing(session, features, ids):
    at_once = generate(session, ids, features, end_id=-1, max_new_tokens=8)
    session.chunk = 16
    try:
        assert generate(session, ids, features, end_id=-1, max_new_tokens=8) == at_once
    finally:
        session.chunk = None


def test_it_stops_at_the_end_token_at_the_limit_and_at_the_context(session, features, ids):
    answer = generate(session, ids, features, end_id=-1, max_new_tokens=1000)
    assert len(answer) == CONTEXT - len(ids) + 1
    assert generate(session, ids, features, end_id=-1, max_new_tokens=3) == answer[:3]
    assert generate(session, ids, features, end_id=answer[2], max_new_tokens=9) == answer[: answer.index(answer[2])]


def test_teacher_forcing_chooses_what_generation_chose(session, features, ids):
    answer = generate(session, ids, features, end_id=-1, max_new_tokens=6)
    cache = session.start()
    prompt = prefill(session, cache, ids, image_rows(session, ids, features))
    forced = prefill(session, cache, answer[:-1], np.zeros((5, HIDDEN), np.float32), len(ids))
    logits = np.concatenate([prompt[-1:], forced])
    assert logits.shape == (6, session.description["vocab"]) and logits.argmax(-1).tolist() == answer


def test_a_second_question_may_go_on_from_the_image(session, features, ids):
    cache, rows = session.start(), image_rows(session, ids, features)
    tokens = len(features)
    prefill(session, cache, ids[:tokens], rows[:tokens])
    for last in (40, 50):
        question = [*ids[tokens:-1], last]
        found = prefill(session, cache, question, rows[tokens:], tokens)
        whole = prefill(session, session.start(), [*ids[:tokens], *question], rows)
        np.testing.assert_allclose(found, whole[tokens:], rtol=1e-4, atol=1e-5)


def test_prompts_that_cannot_run_are_refused(session, features, ids):
    with pytest.raises(StageError, match=f"does not fit the context of {CONTEXT}"):
        generate(session, [*ids, *[1] * CONTEXT], features, end_id=-1, max_new_tokens=1)
    with pytest.raises(StageError, match="visual tokens"):
        generate(session, ids[1:], features, end_id=-1, max_new_tokens=1)
    assert image_rows(session, ids, features).shape == (len(ids), HIDDEN)


def test_a_damaged_file_is_named(tmp_path):
    toy = converted(tmp_path, bits=0)
    (toy.device_model.path / "decoder.onnx").write_bytes(b"no model")
    with pytest.raises(StageError, match=r"decoder\.onnx"):
        OnnxSession(DeviceModel(toy.device_model.path)).start()
