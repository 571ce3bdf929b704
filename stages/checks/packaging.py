"""What a bundle can be called."""

from __future__ import annotations

import re

from pipelines.errors import ConfigError
from stages.schema import DeviceProfile, PackageConfig

MOST = 8  # questions of a self-test
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:() -]*")


def package(config: PackageConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError for a name or a version that no file can have, and for a licence that is no SPDX expression."""
    for key in ("name", "version"):
        value = getattr(config, key)
        if not _WORD.fullmatch(value):
            raise ConfigError(
                f"package.{key} is {value!r}",
                hint="expected letters, digits, '.', '_', '+' and '-', at most 128, the first a letter or a digit",
            )
    if config.licence is not None and not _LICENCE.fullmatch(config.licence):
        raise ConfigError(
            f"package.licence is {config.licence!r}",
            hint="expected an SPDX expression, such as Apache-2.0 or LicenseRef-My-Terms; null where nothing is said",
        )
    if config.licence_file is not None and config.licence is None:
        raise ConfigError(
            "package.licence_file is the text of a licence that package.licence does not name",
            hint="set package.licence=LicenseRef-My-Terms, say",
        )
    if not 0 <= config.self_test <= MOST:
        raise ConfigError(
            f"package.self_test is {config.self_test}", hint=f"expected 0 to {MOST} questions; 3 is usual"
        )
