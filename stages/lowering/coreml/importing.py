"""Imports coremltools without the libraries whose models it could also convert, which take a third of its time."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = ("sklearn", "xgboost", "tensorflow", "libsvm")


class _Hiding:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in _UNUSED:
            raise ModuleNotFoundError(f"{name} is not needed here", name=name)
        return None


def import_coremltools() -> None:
    """Import it, if nobody has yet. What it does without can be imported by others, before and after."""
    hiding = _Hiding()
    sys.meta_path.insert(0, hiding)
    try:
        import coremltools  # noqa: F401
    finally:
        sys.meta_path.remove(hiding)
