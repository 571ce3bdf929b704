"""`tapeout build -m`: Hydra's multirun. Overrides with several values become one configuration for each combination."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipelines.choices import choices_of
from pipelines.errors import ConfigError
from pipelines.project import Project


def combinations(project: Project, overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each run of a sweep, in Hydra's order: the last one varies fastest.

    quantize=int4,int8 (choices), quantize.bits=range(3,9), quantize=glob(int*). Raises ConfigError.
    """

    class Groups:
        """What Hydra asks for the names that a glob stands for."""

        def get_group_options(self, group: str, results_filter: ObjectType | None = None) -> list[str]:
            return choices_of(project, group)

    try:
        parsed = OverridesParser.create(config_loader=Groups()).parse_overrides(overrides)
        runs: list[list[str]] = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except HydraException as error:
        raise ConfigError(
            f"-m: {str(error).partition(chr(10))[0]}", hint="write group=a,b or key=range(2,9)"
        ) from error
    if not runs:
        raise ConfigError("-m: no configuration fits these overrides", hint=" ".join(overrides))
    return runs
