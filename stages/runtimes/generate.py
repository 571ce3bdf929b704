"""Greedy generation, token by token, on any runtime behind the session protocol."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.runtimes.session import LanguageSession

Observer = Callable[[NDArray[np.float32]], object]


def generate(
    session: LanguageSession,
    ids: Sequence[int],
    features: NDArray[np.float32],
    *,
    end_id: int,
    max_new_tokens: int,
    observe: Observer = lambda logits: None,
) -> list[int]:
    """The most likely next token again and again, until end_id (left out) or max_new_tokens or the context is full.

    observe: is given the logits (V,) that each token was chosen by, the end's included.
    ids: the prompt, with the image token once for each of features' rows (T, D). Raises StageError where the prompt
    does not fit the context, or has another number of image tokens.
    """
    cache = session.start()
    logits = prefill(session, cache, ids, image_rows(session, ids, features))[-1]
    blank = np.zeros((1, features.shape[1]), np.float32)
    context = int(session.description["context"])
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        observe(logits)
        token = int(logits.argmax())
        if token == end_id:
            break
        answer.append(token)
        position = len(ids) + len(answer) - 1
        if len(answer) == max_new_tokens or position >= context:
            break
        logits = session.step([token], blank, position, cache)[-1]
    return answer


def prefill(
    session: LanguageSession, cache: Any, ids: Sequence[int], rows: NDArray[np.float32], position: int = 0
) -> NDArray[np.float32]:
    """Run ids (N) with rows (N, D) from position on, in as few steps as the session takes. Returns logits (N, V)."""
    context = int(session.description["context"])
    if not ids or position + len(ids) > context:
        raise StageError(
            f"a prompt of {len(ids)} tokens at position {position} does not fit the context of {context}",
            hint="Ask a shorter question, or convert with a larger context (convert.context).",
        )
    chunk = session.chunk or len(ids)
    steps = [
        session.step(ids[start : start + chunk], rows[start : start + chunk], position + start, cache)
        for start in range(0, len(ids), chunk)
    ]
    return np.concatenate(steps)


def image_rows(session: LanguageSession, ids: Sequence[int], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """features (T, D) spread over the prompt: (N, D), row i of use where ids[i] is the image token, zeros elsewhere."""
    places = np.asarray(ids) == session.description.get("image_token_id", -1)
    if int(places.sum()) != len(features):
        raise StageError(
            f"the prompt has {int(places.sum())} image tokens, the image gave {len(features)} visual tokens",
            hint="Make the prompt with stages.data.prompt, which puts in one for each.",
        )
    rows = np.zeros((len(ids), features.shape[1]), np.float32)
    rows[places] = features
    return rows
