"""`tapeout new-checkpoint`: a checkpoint of random weights, in the layout of a real one, to try its size with.

    tapeout new-checkpoint MODEL --layout apple|transformers|qwen2 --seed N --out DIR
        [--dtype bfloat16|float16|float32] [--shards N] [--training-form]

MODEL names a file of conf/model/ whose `shape` says how large it is. The same arguments give the same bytes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.config import load_config
from pipelines.errors import ConfigError, nearest, suggestion
from pipelines.files import storing
from pipelines.project import Project

if TYPE_CHECKING:
    from stages.models.vlm import ModelConfig

LAYOUTS = ("apple", "qwen2", "transformers")
DTYPES = ("bfloat16", "float16", "float32")


def new_checkpoint(arguments: list[str], project: Project) -> int:
    """write a checkpoint of random weights in a real one's layout

    Returns 0; raises ConfigError, and writes nothing, for arguments that make no checkpoint, and StoreError where there
    is no room for it.
    """
    options = _parse(arguments)
    shape = _shape(options.model, project)

    from stages.models.layouts.new_weights import write_random  # torch comes with it

    config = _config(options.model, shape, options.layout)
    out = Path(options.out)
    with storing(out):
        write_random(
            out,
            config,
            options.layout,
            seed=options.seed,
            dtype=options.dtype,
            shards=options.shards,
            trained=options.training_form,
        )
    print(f"{out}: {options.model} in the layout {options.layout}, random weights of seed {options.seed}")
    return 0


def _shape(name: str, project: Project) -> dict[str, Any]:
    """What conf/model/NAME.yaml gives as `shape`."""
    folders = [project.conf, *project.config_dirs]
    known = sorted({path.stem for folder in folders for path in (folder / "model").glob("*.yaml")})
    if name not in known:
        raise ConfigError(f"there is no conf/model/{name}.yaml", hint=suggestion(name, known, "models"))
    shape = load_config(project, [f"model={name}"]).groups["model"].get("shape")
    if not shape:
        raise ConfigError(f"conf/model/{name}.yaml says no shape: model.shape is null", hint="choose a model with one")
    return dict(shape)


def _config(name: str, shape: dict[str, Any], layout: str) -> "ModelConfig":
    from stages.models.description import check_config

    config = check_config(json.loads(json.dumps(shape)), Path(f"conf/model/{name}.yaml"))
    if config.text is not None and config.text.head_rank is not None:
        raise ConfigError(
            f"model {name} has an output head of rank {config.text.head_rank}; the layout {layout} has no such head",
            hint="Set model.shape.text.head_rank to null; two matrices are in Tapeout's own layout only.",
        )
    if layout == "qwen2":
        return replace(config, vision=None, image_token_id=None)
    if config.vision is None:
        raise ConfigError(
            f"model {name} has no vision tower, which the layout {layout} has", hint="give --layout qwen2"
        )
    return config


class _Parser(argparse.ArgumentParser):
    """argparse, with our errors."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition(": ")[2].split()
        guess = nearest(words[0], self._option_string_actions) if message.startswith("unrecognized") else ""
        raise ConfigError(f"tapeout new-checkpoint: {message}", hint=guess or " ".join(self.format_usage().split()))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="tapeout new-checkpoint", allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="MODEL", help="a file of conf/model/ that has a shape")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), required=True, help="whose names and files")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the values")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="files to spread the weights over")
    parser.add_argument("--training-form", action="store_true", help="the tower as trained, with its branches")
    options = parser.parse_args(arguments)
    if options.shards < 1:
        parser.error(f"--shards is {options.shards}; expected 1 or more")
    return options
