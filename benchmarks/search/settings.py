"""The shipped configuration, as `tapeout build search=nsga2 device=[pixel-8,raspberry-pi-5]` composes it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines import typed
from pipelines.compose import compose
from pipelines.project import find_project
from stages.schema import SCHEMAS, DeviceProfile, ValidateConfig
from stages.schema.search import RecoverConfig, SearchConfig, ShortlistConfig, SupernetConfig

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "artifacts" / "reference"
DEVICES, DEVICE = ("pixel-8", "raspberry-pi-5"), "pixel-8"  # of the search; whose bytes and latency are shown
CUT_FROM = ("sorted", "supernet")
SEED = 101  # of the held-out questions
GROUPS = ("supernet", "search", "shortlist", "recover", "validate")

# A trial run of everything, in minutes: it shows that the benchmark works, and nothing else.
QUICK = (
    *("supernet.steps=2", "supernet.batch=4", "supernet.importance_batches=1"),
    *("search.trials=10", "search.population=5", "search.seeds=[1,2]", "search.images=16"),
    *("recover.training.steps=2", "recover.training.batch=4", "recover.images=16"),
)


@dataclass(frozen=True)
class Settings:
    """per_task: held-out questions of each task. tau_steps, tau_subnets: recovery's steps and the subnets whose
    rankings are compared; at a trial run all is tiny. cut_from: what uniform designs are cut from."""

    per_task: int
    tau_steps: int
    tau_subnets: int
    quick: bool = False
    cut_from: tuple[str, ...] = CUT_FROM

    def configs(self, *overrides: str) -> "Configs":
        return configured(*overrides, *(QUICK if self.quick else ()))


@dataclass(frozen=True)
class Configs:
    """As the stages get them."""

    supernet: SupernetConfig
    search: SearchConfig
    shortlist: ShortlistConfig
    recover: RecoverConfig
    validate: ValidateConfig
    devices: dict[str, DeviceProfile]


@cache
def configured(*overrides: str) -> Configs:
    """overrides: as on the command line. Raises ConfigError."""
    said = [f"device=[{','.join(DEVICES)}]", "tracking=none", *overrides]
    values, _ = compose(find_project(REPOSITORY), said)
    groups = {name: typed.build(typed.check(name, name, values[name], SCHEMAS[name]), SCHEMAS[name]) for name in GROUPS}
    devices = {
        name: typed.build(typed.check(name, "device", device, SCHEMAS["device"]), SCHEMAS["device"])
        for name, device in values["device"].items()
    }
    return Configs(**groups, devices=devices)
