"""NNCF (github.com/openvinotoolkit/nncf), and nothing but its work: it prints tables and reports its use."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def quiet_nncf() -> Iterator[Any]:
    """The module nncf, imported without what reports its use (NNCF_CI says so to it), and silent inside."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    level = nncf.nncf_logger.level
    nncf.set_log_level(40)  # errors, of the standard library's levels
    try:
        with redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        nncf.set_log_level(level)
