"""A function of a program while it is compiled: operations with kernels, and what is known of the values."""

from dataclasses import dataclass, field
from typing import Any

import torch

from stages.runtimes.coreml_reference.operators import Kernel

Signature = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass
class Operation:
    """An operation that runs: the values that it reads (by name, in its kernel's order) and makes.

    `state`: the state that it touches. `in_place`, `skip` and `copies` are decided by states.py.
    """

    kind: str
    kernel: Kernel
    sources: list[str]
    sinks: list[str]
    state: str = ""
    in_place: bool = False
    skip: bool = False
    copies: bool = False


@dataclass
class Translation:
    """A function as operations. constants: in the executor's dtypes; stored: the same in their own.

    large: values of over 65,536 numbers, or of unknown size. dtypes and ranks: of every value; float16 is the
    executor's own choice of dtype.
    """

    inputs: Signature
    states: Signature
    outputs: list[str]
    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
