"""Every error that Tapeout raises on purpose.

    TapeoutError                 root; exit status 1
    ├── ConfigError              the configuration is wrong; exit status 2, nothing ran
    │   └── PlanError            the pipeline's graph is wrong (a circle, an unknown stage, no such function)
    ├── StageError               a stage could not do its work; its node fails, the other devices finish
    │   ├── CheckpointError      a model file is missing, truncated, of the wrong kind, or holds wrong tensors
    │   ├── LoweringError        an operator or a weight format that a runtime cannot hold
    │   └── WorkerError          the process that ran a stage was killed
    ├── GateError                a validated metric is out of its bounds
    ├── VerificationError        a bundle, a signature or update metadata is not what it claims to be; it is not used
    ├── ReleaseError             a release or a promotion that contradicts what has been decided before
    ├── UpdateError              an update could not be had; what is in place stays
    └── StoreError               the store or the workspace cannot be read or written, or an object is damaged
        └── UnwritableError      the disk is full or must not be written: the whole build ends

A message says what was found, where, and what was expected; `hint` says the nearest valid choice and the next step.
No traceback is shown for any of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class TapeoutError(Exception):
    """Root of Tapeout's errors. `message`: what, where, expected. `hint`: the nearest choice and the next step."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigError(TapeoutError):
    """The configuration is wrong: an unknown key, group, device or value. Nothing ran."""

    exit_status: ClassVar[int] = 2


class PlanError(ConfigError):
    """The pipeline's graph is wrong: a cycle, an unknown need, a stage function that does not exist."""


class StageError(TapeoutError):
    """A stage could not do its work with the inputs that it was given."""


class CheckpointError(StageError):
    """A model file is missing, truncated, of the wrong kind, or its tensors are not what the configuration says."""


class LoweringError(StageError):
    """An operator or a weight format has no form in the runtime that was asked for."""


class WorkerError(StageError):
    """The process that ran a stage was killed from outside (a signal, or no memory left)."""


class GateError(TapeoutError):
    """A validated metric is outside the bounds that the configuration sets for it."""


class VerificationError(TapeoutError):
    """A bundle, a signature, a provenance, a history or update metadata is not what it claims to be. It is not used."""


class ReleaseError(TapeoutError):
    """What was asked for is refused: it contradicts what is released, or what has been decided before."""


class UpdateError(TapeoutError):
    """An update could not be had: the network, the disk, metadata that has expired. What is in place stays."""


class StoreError(TapeoutError):
    """The store or the workspace cannot be read or written, or what lies there is damaged."""


class UnwritableError(StoreError):
    """The disk is full, read-only or failing: no other node's result could be kept either."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the choice closest to `word`, or "" where none is close.

    Half of a short word is not close.
    """
    found = difflib.get_close_matches(
        str(word), [str(choice) for choice in choices], n=1, cutoff=0.5 if len(str(word)) > 4 else 0.6
    )
    return f"did you mean '{found[0]}'?" if found else ""


def suggestion(word: str, choices: Iterable[str], title: str) -> str:
    """Return the hint for a word that is not among `choices`: the closest, then all under their title.

    "did you mean 'bits'? quantize has: bits, group_size"
    """
    known = sorted(str(choice) for choice in choices)
    listed = f"{title}: {', '.join(known)}" if known else f"{title}: none"
    return " ".join(filter(None, [nearest(word, known), listed]))
