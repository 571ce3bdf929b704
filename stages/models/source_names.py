"""What model.path may name, checked before anything runs. Imported at plan time: light."""

from __future__ import annotations

import re

from pipelines.errors import ConfigError, nearest
from stages.schema import DeviceProfile, ModelConfig

HUB, REGISTRY, RUNS = "hf", "models", "runs"
_FORMS = {HUB: "hf://OWNER/NAME", REGISTRY: "models:/NAME/VERSION", RUNS: "runs:/RUN_ID/PATH"}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"


def scheme_of(path: str) -> str:
    """hf, models or runs of a URI; "" of a folder."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", path)
    return found[1].lower() if found else ""


def hub_name(path: str) -> str:
    """OWNER/NAME of hf://OWNER/NAME, or "" where it is none."""
    found = re.fullmatch(rf"hf://({_NAME}/{_NAME})/?", path)
    return found[1] if found and "--" not in found[1] and ".." not in found[1] else ""


def check_source(config: ModelConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where model.path is malformed, or names what may be another model tomorrow."""
    path, revision = config.path, config.revision
    scheme = scheme_of(path)
    if scheme and scheme not in _FORMS:
        raise ConfigError(
            f"model.path is {path}: nothing is known of {scheme}:",
            hint=f"{nearest(scheme, _FORMS)} expected a folder, or one of {', '.join(_FORMS.values())}".strip(),
        )
    if scheme == HUB:
        _check_hub(path, revision)
        return
    if revision is not None:
        raise ConfigError(
            f"model.revision is {revision!r}, but model.path is {path}",
            hint="a revision is of hf://OWNER/NAME alone; set model.revision=null",
        )
    if scheme == REGISTRY:
        _check_registry(path)
    if scheme == RUNS and not re.fullmatch(r"runs:/[0-9A-Za-z_-]+/(?!.*\.\.)[^/].*", path):
        raise ConfigError(f"model.path is {path}; expected {_FORMS[RUNS]}", hint="the path is of the run's artifacts")


def _check_hub(path: str, revision: str | None) -> None:
    if not hub_name(path):
        hint = "give the commit as model.revision" if "@" in path else "as in hf://apple/FastVLM-0.5B"
        raise ConfigError(f"model.path is {path}; expected {_FORMS[HUB]}", hint=hint)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        found = "missing" if revision is None else f"{revision!r}, which may move"
        raise ConfigError(
            f"model.revision is {found}; expected the 40 hexadecimal digits of a commit of {path}",
            hint="the hub shows it under 'Files and versions', History; a branch or tag would not pin the weights",
        )


def _check_registry(path: str) -> None:
    if re.fullmatch(r"models:/(?:[^/@]+/\d+|m-[0-9a-f]+)", path):
        return
    if re.fullmatch(r"models:/[^/@]+(?:/[^/]+|@[^/]+)?", path):
        name = re.split(r"[/@]", path.removeprefix("models:/"))[0]
        raise ConfigError(
            f"model.path is {path}, which names no version: an alias or stage moves",
            hint=f"pin the version that is meant: models:/{name}/1",
        )
    raise ConfigError(f"model.path is {path}; expected {_FORMS[REGISTRY]}", hint="as in models:/fastvlm/3")
