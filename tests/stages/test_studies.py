"""Searches that are stopped at any moment, on every storage, against one that never was."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from pipelines.errors import ConfigError, StageError
from pipelines.workspace import Workspace
from stages import checks
from stages.elastic.space import Architecture, Dimension, Space
from stages.schema import SearchConfig
from stages.schema.search import Sampler, StorageConfig, StorageKind
from stages.searching.exploring import SCORE, Explorer
from stages.searching.storage import opened
from stages.searching.studies import Study, fingerprint, mark
from stages.searching.trials import Cost, Score, Trial
from tests.supernets import search_config
from tests.toy import toy_config

SPACE = Space(
    toy_config(),
    (Dimension("depth", (2, 1)), Dimension("ffn", (96, 64, 48, 32, 16)), Dimension("head_rank", (64, 48, 32, 16))),
)
SAMPLERS = [Sampler.nsga2, Sampler.tpe, Sampler.random]
WRITES = (
    "create_new_trial",
    "set_trial_param",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_state_values",
    "set_study_system_attr",
)
Make = Callable[[], optuna.storages.BaseStorage]


class KilledError(Exception):
    """What stands for the end of a process."""


def config(**changes: Any) -> SearchConfig:
    return search_config(**{"trials": 14, "population": 4, "designs": [1, 0.5, 0], "prune": None, **changes})


def size_of(architecture: Architecture) -> float:
    return sum(value / SPACE.largest[name] for name, value in architecture.items()) / 3


def cost_of(architecture: Architecture) -> Cost:
    share = size_of(architecture)
    return Cost(1, {}, {}, share, 0.5 * share + 0.25 * architecture["depth"])


def score_of(architecture: Architecture) -> Score:
    return Score(min(1.0, size_of(architecture) ** 0.5), 1.0 - size_of(architecture), 64, True)


def study(storage: optuna.storages.BaseStorage, by: Sampler, settings: SearchConfig, seed: int = 1) -> Study:
    return Study(storage, f"search-{by.value}-{seed}", by, seed, SPACE, settings)


def run(storage: optuna.storages.BaseStorage, by: Sampler, settings: SearchConfig) -> list[Trial]:
    """A whole search, or what is left of one."""
    search = study(storage, by, settings)
    while batch := search.batch():
        for number, architecture in batch:
            if search.kept(number) is None:
                search.keep(number, score_of(architecture))
        told = [(number, search.kept(number) or score_of({}), cost_of(each)) for number, each in batch]
        search.tell(told)
    return tried(search)


def tried(search: Study) -> list[Trial]:
    return search.trials({mark(each): cost_of(each) for each in search.told()})


def mortal(storage: optuna.storages.BaseStorage, writes: int) -> optuna.storages.BaseStorage:
    """The storage, whose process is killed after so many writes."""
    left = [writes]

    def counted(method: Any) -> Any:
        def write(*arguments: Any, **options: Any) -> Any:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            return method(*arguments, **options)

        return write

    inner = isinstance(storage, optuna.storages.RDBStorage)  # whose cache calls these two by other names
    for name in WRITES:
        name = f"_{name}" if inner and name in ("create_new_trial", "set_trial_param") else name
        setattr(storage, name, counted(getattr(storage, name)))
    return storage


def lives(make: Make, by: Sampler, settings: SearchConfig, writes: int) -> tuple[list[Trial], int]:
    """(trials, how often it was killed)."""
    for killed in range(1000):
        try:
            return run(mortal(make(), writes), by, settings), killed
        except KilledError:
            pass
    raise AssertionError("it never ended")


def journal(folder: Path) -> Make:
    folder.mkdir(exist_ok=True)
    return lambda: opened(StorageConfig(StorageKind.journal, None, "search"), folder)


def sqlite(folder: Path) -> Make:
    folder.mkdir(exist_ok=True)
    return lambda: opened(StorageConfig(StorageKind.rdb, f"sqlite:///{folder}/search.db", "search"), folder)


@pytest.mark.parametrize("by", SAMPLERS, ids=str)
@pytest.mark.parametrize("writes", [11, 13, 17, 37])
def test_a_search_that_is_killed_tries_what_another_tries(by: Sampler, writes: int, tmp_path: Path) -> None:
    """Within proposals, of which some of the parameters are there already; between scores; while it tells."""
    whole = run(journal(tmp_path / "whole")(), by, config())
    found, killed = lives(journal(tmp_path / "killed"), by, config(), writes)
    assert found == whole and killed >= 2


@pytest.mark.parametrize("by", SAMPLERS, ids=str)
def test_a_database_gives_the_same_trials_as_a_journal(by: Sampler, tmp_path: Path) -> None:
    few = config(trials=9)
    whole = run(journal(tmp_path / "whole")(), by, few)
    found, killed = lives(sqlite(tmp_path / "killed"), by, few, 44)
    assert found == whole and killed


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a proxy in a process of its own."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    database = tmp_path_factory.mktemp("proxy") / "search.db"
    program = (
        f"import optuna; storage = optuna.storages.RDBStorage('sqlite:///{database}')\n"
        f"optuna.storages.run_grpc_proxy_server(storage, host='127.0.0.1', port={port})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_proxy_gives_the_same_trials_as_a_journal(proxy: str, tmp_path: Path) -> None:
    few = config(trials=9)
    whole = run(journal(tmp_path)(), Sampler.nsga2, few)
    storage = StorageConfig(StorageKind.grpc, proxy, "search")
    found, killed = lives(lambda: opened(storage, tmp_path), Sampler.nsga2, few, 44)
    assert found == whole and killed


def test_a_journal_is_read_up_to_a_line_that_was_cut_short(tmp_path: Path) -> None:
    whole = run(journal(tmp_path / "whole")(), Sampler.nsga2, config())
    make = journal(tmp_path / "killed")
    with pytest.raises(KilledError):
        run(mortal(make(), 80), Sampler.nsga2, config())
    path = tmp_path / "killed/search.journal"
    with open(path, "ab") as file:
        file.write(b'{"op_code": 5, "worker_id": "of a proc')
    Path(f"{path}.lock").touch()  # which nobody holds any more
    assert run(make(), Sampler.nsga2, config()) == whole
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("by", SAMPLERS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"trials": 1}, {"trials": 17, "population": 5}], ids=str)
def test_every_budget_is_spent_on_different_architectures(by: Sampler, changes: dict[str, int], tmp_path: Path) -> None:
    settings = config(**changes)
    found = run(journal(tmp_path)(), by, settings)
    assert len(found) == len({mark(trial.architecture) for trial in found}) == min(settings.trials, SPACE.size)
    assert [trial.number for trial in found] == list(range(len(found)))


def test_a_search_that_repeats_itself_ends(tmp_path: Path) -> None:
    """Where nothing is left to try, and where nothing else is proposed."""
    small = Space(SPACE.full, (Dimension("depth", (2, 1)), Dimension("ffn", (96, 64))))
    for by in SAMPLERS:
        search = Study(
            journal(tmp_path)(), by.value, by, 1, small, config(trials=9, population=3, designs=[1, 1, 1, 0])
        )
        asked = 0
        while batch := search.batch():
            asked += len(batch)
            for number, _ in batch:
                search.keep(number, Score(0.5, 1.0, 64, True))
            search.tell([(number, Score(0.5, 1.0, 64, True), Cost(1, {}, {}, 1.0, 1.0)) for number, _ in batch])
        assert len({mark(architecture) for architecture in search.told()}) == 4 or asked == 4 * 9


@pytest.mark.parametrize("by", SAMPLERS, ids=str)
def test_designs_come_first_and_chance_is_not_told_of_them(by: Sampler, tmp_path: Path) -> None:
    search = study(journal(tmp_path)(), by, config(designs=[1, 0.5, 0]))
    first = [architecture for _, architecture in search.batch()]
    designs = [SPACE.uniform(share) for share in (1, 0.5, 0)]
    assert designs == [SPACE.largest, {"depth": 2, "ffn": 48, "head_rank": 32}, SPACE.smallest]
    assert (first[:3] == designs) == (by is not Sampler.random) and len(first) == 4
    assert search.batch() == search.batch()  # until they are told


def test_seeds_search_differently(tmp_path: Path) -> None:
    storage = journal(tmp_path)()
    one, other = (study(storage, Sampler.nsga2, config(designs=[]), seed).batch() for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize("score", ["accuracy", "loss"])
def test_a_search_gets_better_than_where_it_began(score: str, tmp_path: Path) -> None:
    """It is told what is to grow: of an accuracy that only ffn=16 has, or of a loss, the search finds that."""
    search = study(journal(tmp_path)(), Sampler.nsga2, config(trials=24, score=score, designs=[]))
    places = []
    while batch := search.batch():
        told = []
        for number, architecture in batch:
            far = architecture["ffn"] / 96
            search.keep(number, Score(1 - far if score == "accuracy" else 0.5, far, 64, True))
            told.append((number, search.kept(number) or score_of({}), Cost(1, {}, {}, 1.0, 1.0)))
            places.append(far)
        search.tell(told)
    assert sum(places[-6:]) < sum(places[:6])


def test_studies_of_other_values_are_others() -> None:
    marks = {
        fingerprint("weights", SPACE.dimensions, config(), ["pixel-8"]),
        fingerprint("weight", SPACE.dimensions, config(), ["pixel-8"]),
        fingerprint("weights", SPACE.dimensions[1:], config(), ["pixel-8"]),
        fingerprint("weights", SPACE.dimensions, config(seed=18), ["pixel-8"]),
        fingerprint("weights", SPACE.dimensions, config(), ["pixel-9"]),
    }
    assert len(marks) == 5
    assert fingerprint("weights", SPACE.dimensions, config(), ["pixel-8"]) in marks


@pytest.mark.parametrize(
    ("kind", "url", "message"),
    [
        (StorageKind.rdb, "sqlite:////there/is/no/such.db", "unable to open database"),
        (StorageKind.rdb, "nonsense://somewhere", "nonsense"),
    ],
)
def test_a_storage_that_does_not_answer(kind: StorageKind, url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=message) as error:
        opened(StorageConfig(kind, url, "search"), tmp_path)
    assert "search.storage.kind=journal" in error.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 0},
        {"population": 1},
        {"seeds": []},
        {"seeds": [1, 1]},
        {"designs": [1.5]},
        {"prune": 1.0},
        {"storage": StorageConfig(StorageKind.rdb, None, "search")},
        {"storage": StorageConfig(StorageKind.rdb, "search.db", "search")},
        {"storage": StorageConfig(StorageKind.rdb, "nonsense://somewhere", "search")},
        {"storage": StorageConfig(StorageKind.grpc, "host", "search")},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused_at_plan_time(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"search.{next(iter(change))}") as error:
        checks.search(replace(config(), **change))
    assert error.value.hint
    checks.search(config())


class Prices:
    """Stands for Costs."""

    def of(self, architecture: Architecture) -> Cost:
        return cost_of(architecture)


class Judge:
    """Scores as Workspace.map would have them, in an order of its own; killed after so many.

    bars: {mark: the bar of each time it was scored}.
    """

    def __init__(self, order: Callable[[Sequence[Any]], Sequence[Any]] = list, lives: int = 10**9):
        self.order, self.lives, self.bars = order, lives, dict[str, list[float | None]]()

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        assert function == SCORE
        for index in self.order(range(len(items))):
            if not self.lives:
                raise KilledError
            self.lives -= 1
            yield index, self.scored(**items[index])

    def scored(self, architecture: Architecture, bar: float | None) -> dict[str, Any]:
        """At a first look all are a little better."""
        self.bars.setdefault(mark(architecture), []).append(bar)
        whole = score_of(architecture) if architecture["ffn"] != 48 else Score(0.0, 3.0, 64, True)
        look = Score(max(0.0, whole.accuracy - 0.05), whole.loss, 16, False)
        given_up = bar is not None and look.accuracy < bar
        return {"look": vars(look), "whole": None if given_up else vars(whole)}


def explored(folder: Path, judge: Judge, prune: float | None = 0.1, trials: int = 10) -> list[list[Trial]]:
    storage, settings = journal(folder)(), config(trials=trials)
    studies = [study(storage, by, settings, seed) for seed in (1, 2) for by in (Sampler.nsga2, Sampler.random)]
    prices: Any = Prices()
    return Explorer(studies, prices, prune, 4 * trials, Workspace(folder, folder, maps=judge)).run()


def test_scores_that_come_in_any_order_and_kills_change_nothing(tmp_path: Path) -> None:
    whole = explored(tmp_path / "whole", Judge())
    assert explored(tmp_path / "reversed", Judge(order=lambda items: list(items)[::-1])) == whole
    assert explored(tmp_path / "sorted", Judge(order=lambda items: sorted(items, key=lambda each: each % 3))) == whole
    killed = 0
    for _ in range(100):
        try:
            found = explored(tmp_path / "killed", Judge(lives=5))
            break
        except KilledError:
            killed += 1
    assert found == whole and killed > 2
    assert [trial.by for trial in map(lambda trials: trials[0], whole)] == ["nsga2", "random"] * 2
    assert {len(trials) for trials in whole} == {10}


def test_what_one_study_had_scored_is_not_scored_again(tmp_path: Path) -> None:
    judge = Judge()
    explored(tmp_path / "whole", judge, prune=None)
    assert all(bars == [None] for bars in judge.bars.values())
    again = Judge(lives=0)
    explored(tmp_path / "whole", again, prune=None)  # of a search that has ended, nothing is
    assert not again.bars


def test_what_is_much_worse_than_something_cheaper_is_given_up(tmp_path: Path) -> None:
    """By its own search's trials, at a first look; and is on no frontier."""
    judge, prune = Judge(), 0.1
    found = explored(tmp_path, judge, prune)
    given_up = [trial for trials in found for trial in trials if not trial.score.whole]
    assert given_up and all(trial.architecture["ffn"] == 48 for trial in given_up)
    for trials in found:
        for trial in trials:
            cheaper = [
                other.score.accuracy
                for other in trials[: trial.number]
                if other.score.whole
                and other.cost.byte_share <= trial.cost.byte_share
                and other.cost.latency_share <= trial.cost.latency_share
            ]
            assert trial.score.whole or trial.score.accuracy < max(cheaper) - prune
            assert trial.score.questions == (64 if trial.score.whole else 16)
    bars = [bar for bars in judge.bars.values() for bar in bars]
    assert None in bars and max(bar for bar in bars if bar is not None) <= 1 - prune


def test_a_bar_is_that_of_the_best_that_costs_no_more(tmp_path: Path) -> None:
    storage, settings = journal(tmp_path)(), config(trials=4, population=2, designs=[0, 0.5, 1, 1])
    judge, prices, prune = Judge(), Prices(), 0.2
    costs: Any = prices
    (trials,) = Explorer(
        [study(storage, Sampler.nsga2, settings)], costs, prune, 4, Workspace(tmp_path, tmp_path, maps=judge)
    ).run()
    smallest, middle, largest = (SPACE.uniform(share) for share in (0, 0.5, 1))
    assert [trial.architecture for trial in trials[:3]] == [smallest, middle, largest]
    assert judge.bars[mark(smallest)] == judge.bars[mark(middle)] == [None]
    assert middle["ffn"] == 48  # which answers nothing: the smallest is the best that costs no more than the largest
    assert judge.bars[mark(largest)] == [pytest.approx(score_of(smallest).accuracy - prune)]
