"""The sizes that a config.json may say: what is written is what is read, and what no model can have is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CheckpointError
from stages.load import load
from stages.models.description import check_config
from stages.models.fastvit import VisionConfig
from stages.models.qwen2 import TextConfig
from stages.models.vlm import ModelConfig as Configuration
from stages.schema import ModelConfig
from tests.tiny import workspace
from tests.toy import narrow_config, toy_checkpoint, toy_config


def test_a_config_from_before_reads_and_writes_as_before() -> None:
    values = json.loads(json.dumps(toy_config().to_dict()))
    assert not {"head_dim", "head_rank"} & values["text"].keys() and type(values["vision"]["mlp_ratio"]) is int
    config = check_config(values, Path("config.json"))
    assert config.text is not None and (config.text.head_dim, config.text.head_rank) == (32, None)
    said = {**values, "text": {**values["text"], "head_dim": 32, "head_rank": None}}
    assert check_config(said, Path("config.json")) == config == toy_config()
    assert check_config(said, Path("config.json")).to_dict() == toy_config().to_dict()


@settings(deadline=None, max_examples=60)
@given(
    heads=st.integers(1, 6),
    groups=st.integers(1, 3),
    half=st.integers(1, 40),
    hidden=st.integers(1, 200),
    rank=st.none() | st.integers(1, 200),
    inner=st.integers(1, 64),
    widths=st.sampled_from([(16,), (16, 32), (16, 48, 96)]),
)
def test_what_is_written_is_what_is_read(
    heads: int, groups: int, half: int, hidden: int, rank: int | None, inner: int, widths: tuple[int, ...]
) -> None:
    """Through config.json, and any shape that passes its checks can be built, with whole channels."""
    count = len(widths)
    vision = VisionConfig(
        32, 16, (1,) * count, widths, ("repmixer",) * count, ((1, 1),) * count, inner / widths[0], 3, 3, 16, 1
    )
    rank = min(rank, hidden) if rank else None
    text = TextConfig(300, hidden, 8, 1, heads * groups, heads, 1e4, 1e-6, False, 2 * half, rank)
    config = Configuration(vision, text, 299)
    written = json.loads(json.dumps(config.to_dict()))
    assert check_config(written, Path("config.json")) == config == Configuration.from_dict(written)
    with torch.device("meta"):
        state = config.build().state_dict()
    for stage, width in enumerate(widths):
        found = state[f"vision.stages.{stage}.blocks.0.ffn.contract.weight"].shape[1]
        assert found * widths[0] == inner * width
    assert state["text.layers.0.self_attn.o_proj.weight"].shape == (hidden, 2 * half * heads * groups)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "odd head": ("text", {"head_dim": 31}, r"text\.head_dim is 31; expected an even number"),
    "no head": ("text", {"head_dim": 0}, r"text\.head_dim is 0; expected numbers above 0"),
    "head null": ("text", {"head_dim": None}, r"text\.head_dim is None; expected an integer"),
    "heads that do not divide": (
        "text",
        {"num_attention_heads": 3},
        r"a multiple of 2 x 3 heads, or the width of a head in text\.head_dim",
    ),
    "rank and tied": ("text", {"head_rank": 8, "tie_word_embeddings": True}, "tie_word_embeddings is true.*null"),
    "rank beyond": ("text", {"head_rank": 65}, r"text\.head_rank is 65; expected at most 64"),
    "rank zero": ("text", {"head_rank": 0}, r"text\.head_rank is 0; expected numbers above 0"),
    "rank a fraction": ("text", {"head_rank": 8.0}, r"text\.head_rank is 8\.0; expected an integer or null"),
    "misspelt": ("text", {"head_rnak": 8}, r"unknown key text\.head_rnak\n.*did you mean 'head_rank'"),
    "half a channel": ("vision", {"mlp_ratio": 1.51}, r"mlp_ratio is 1\.51; .*\[32, 64\]; times 32 it is 48\.32"),
    "no channel": ("vision", {"mlp_ratio": 1e-9}, r"vision\.mlp_ratio is 1e-09; expected a whole number of channels"),
    "a word": ("vision", {"mlp_ratio": "2"}, r"vision\.mlp_ratio is '2'; expected a finite number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_model_can_have_is_said(name: str) -> None:
    section, changes, message = WRONG[name]
    values = json.loads(json.dumps(toy_config().to_dict()))
    values[section] |= changes
    with pytest.raises(CheckpointError, match=message):
        check_config(values, Path("config.json"))


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "two matrices, said one": ({"head_rank": None}, "two matrices: set text.head_rank in config.json to the rows of"),
    "two matrices, said tied": (
        {"head_rank": None, "tie_word_embeddings": True},
        "set text.tie_word_embeddings to false, and text.head_rank to its rank",
    ),
    "another rank": ({"head_rank": 32}, r"lm_head\.down\.weight \(expected \[32, 64\], found \[48, 64\]\)"),
    "other heads": ({"head_dim": 16}, r"q_proj\.weight \(expected \[16, 64\], found \[32, 64\]\)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_with_another_head_is_told_apart(name: str, tmp_path: Path) -> None:
    changes, message = KINDS[name]
    files = toy_checkpoint(tmp_path / "files", config=narrow_config())
    values = files.read_json("config.json")
    files.write_json("config.json", {**values, "text": {**values["text"], **changes}})
    with pytest.raises(CheckpointError, match=message):
        load(ModelConfig(str(files.path), None, None, None, None, None), workspace(tmp_path / "load"))


def test_one_matrix_said_two(tmp_path: Path) -> None:
    files = toy_checkpoint(tmp_path / "files")
    values = files.read_json("config.json")
    files.write_json("config.json", {**values, "text": {**values["text"], "head_rank": 8}})
    with pytest.raises(CheckpointError, match=r"one matrix: set text\.head_rank to null"):
        load(ModelConfig(str(files.path), None, None, None, None, None), workspace(tmp_path / "load"))


def test_the_size_that_a_model_must_have_may_name_what_is_usual(tmp_path: Path) -> None:
    toy_checkpoint(tmp_path / "files")
    for number, (text, right) in enumerate([({"head_dim": 32, "head_rank": None}, True), ({"head_dim": 16}, False)]):
        config = ModelConfig(str(tmp_path / "files"), None, {"text": text}, None, None, None)
        if right:
            load(config, workspace(tmp_path / str(number)))
            continue
        with pytest.raises(CheckpointError, match=r"shape\.text\.head_dim is 16, but the checkpoint's .* is 32"):
            load(config, workspace(tmp_path / str(number)))
