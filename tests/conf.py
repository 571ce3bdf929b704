"""The files of conf/, as a stage is given them."""

from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from stages.schema import SCHEMAS

CONF = Path(__file__).parents[1] / "conf"


def group(name: str, file: str, **changes: Any) -> Any:
    """conf/NAME/FILE.yaml, with the files that its defaults name before it and `changes` behind it."""
    values = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), *_chain(name, file), changes)
    return OmegaConf.to_object(values)


def _chain(name: str, file: str) -> list[Any]:
    values: Any = OmegaConf.load(CONF / name / f"{file}.yaml")
    chain: list[Any] = []
    for entry in values.pop("defaults", ["_self_"]):
        if entry == "_self_":
            chain.append(values)
        elif isinstance(entry, str):  # such as "default", or "base/a18@_here_" beside this file
            chain += _chain(name, str(PurePosixPath(file).parent / entry.removesuffix("@_here_")))
        elif not any(key.startswith("override ") for key in entry):  # such as "/distill@training: default"
            (place, chosen), *_ = entry.items()
            other, _, key = place.strip("/").partition("@")
            chain.append(OmegaConf.create({key: OmegaConf.merge(*_chain(other, chosen))}))
    return chain
