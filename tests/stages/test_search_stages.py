"""The stages search, shortlist and recover on a toy model, one behind the other, as a build runs them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import ConfigError
from pipelines.workspace import Event, Metric, Workspace
from stages import checks
from stages.artifacts import Checkpoint
from stages.elastic.space import Space
from stages.recover import recover
from stages.schema import SearchConfig
from stages.schema.search import LatencySource, RecoverConfig, Sampler
from stages.search import search
from stages.search_artifacts import Shortlist, Supernet, Trials
from stages.searching.costs import Costs
from stages.searching.hypervolume import hypervolume
from stages.searching.judge import Questions, score_model
from stages.searching.trials import Score, Trial, front, point
from stages.shortlist import shortlist
from tests.conf import group
from tests.reader import config as distill_config
from tests.supernets import devices, made, search_config, shortlist_config, space_config, supernet_config

torch.set_num_threads(1)
FILES = {"trials.jsonl", "search.json", "frontier.svg", "summary.txt", "gates.json"}
SMALL = supernet_config(
    space_config(tower_depth=[1], tower_width=[1], tower_ffn=[1], group_heads=[1], resolution=[1, 0.5])
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Supernet]:
    return made(tmp_path_factory.mktemp("search"), config=SMALL)


def searched(
    supernet: Supernet, path: Path, settings: SearchConfig, *names: str, events: list[Event] | None = None
) -> Trials:
    profiles = devices(*names)
    path.mkdir()
    given = {"supernet": supernet, "config": settings, "devices": profiles}
    send = (events if events is not None else []).append
    return search(supernet, settings, profiles, Workspace(path, path.parent / "scratch", send, given=given))


@pytest.fixture(scope="module")
def found(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trials, list[Event]]:
    """By NSGA-II, for two devices."""
    events: list[Event] = []
    return searched(toy[1], tmp_path_factory.mktemp("found") / "out", search_config(), events=events), events


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_search_leaves_its_trials_and_what_they_come_to(toy: Any, found: Any) -> None:
    trials, events = found
    every, said = trials.trials(), trials.search()
    assert {path.name for path in trials.path.iterdir()} == FILES
    counts = {(by, seed): sum((each.by, each.seed) == (by, seed) for each in every) for by, seed in pairs()}
    assert counts == dict.fromkeys(pairs(), 5) and len(every) == 20
    space = toy[1].space()
    largest = [trial for trial in every if trial.architecture == space.largest]
    assert {"nsga2"} <= {trial.by for trial in largest}  # a design
    for trial in largest:
        assert trial.cost.byte_share == trial.cost.latency_share == 1
        assert trial.cost == replace(trial.cost, **{key: said["full"][key] for key in ("bytes", "parameters")})
    assert all(set(trial.cost.bytes) == set(trial.cost.latency) == set(devices()) for trial in every)
    assert [trial["architecture"] for trial in said["frontier"]] == [each.architecture for each in front(every)]
    for by in ("nsga2", "random"):
        per_seed = [[each for each in every if (each.by, each.seed) == (by, seed)] for seed in (1, 2)]
        assert said["hypervolume"][by] == pytest.approx([hypervolume(map(point, whole(each))) for each in per_seed])
    summary = (trials.path / "summary.txt").read_text().splitlines()
    assert summary[0].startswith("hypervolume of nsga2: ") and any(
        line.startswith("the frontier: ") for line in summary
    )
    assert any("the full model: " in line and "ms an answer (predicted)" in line for line in summary)
    assert {event.name for event in events if isinstance(event, Metric)} >= {"hypervolume.nsga2", "hypervolume.random"}


def pairs() -> list[tuple[str, int]]:
    return [(by, seed) for seed in (1, 2) for by in ("nsga2", "random")]


def whole(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.score.whole]


def test_a_smaller_architecture_takes_less(toy: Any, found: Any) -> None:
    trials, _ = found
    smallest = [trial for trial in trials.trials() if trial.architecture == toy[1].space().smallest]
    for trial in smallest:
        assert trial.cost.byte_share < 0.95 and trial.cost.latency_share < 0.95
        for latency in trial.cost.latency.values():
            answer = latency["first_token_ms"] + 7 * latency["token_ms"]
            assert latency["answer_ms"] == pytest.approx(answer) and latency["encode_ms"] < latency["first_token_ms"]
    assert smallest


def test_the_same_search_is_the_same_bytes(toy: Any, found: Any, tmp_path: Path) -> None:
    again = searched(toy[1], tmp_path / "out", search_config())
    assert files(again.path) == files(found[0].path)


class Invented:
    """Scores of a model that answers all the better for a narrow decoder: the designs have the best of all."""

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        for index, item in enumerate(items):
            accuracy = 0.9 if item["architecture"]["ffn"] == 32 else 0.3
            yield index, {which: vars(Score(accuracy, 1.0, 64, which == "whole")) for which in ("look", "whole")}


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_search_that_does_not_beat_chance_fails_its_gate(share: float, toy: Any, tmp_path: Path) -> None:
    ratio = None
    for name in ("first", "judged"):
        (tmp_path / name).mkdir()
        settings = search_config(beat_random=ratio and share * ratio, latency="none", designs=[0, 0.5, 1])
        work = Workspace(tmp_path / name, tmp_path / f"scratch-of-{name}", maps=Invented())
        trials = search(toy[1], settings, devices("pixel-8"), work)
        gates = trials.read_json("gates.json")["gates"]
        if ratio is None:
            assert gates == []
            ratio = trials.search()["ratio"]
            assert ratio > 1
    gate = {"metric": "search.hypervolume_ratio", "task": None, "kind": "min", "bound": share * ratio, "value": ratio}
    assert gates == [{**gate, "passed": share < 1}]
    volumes = trials.search()["hypervolume"]
    assert sum(volumes["nsga2"]) / sum(volumes["random"]) == pytest.approx(ratio)
    assert "nsga2 beats random search" in (trials.path / "summary.txt").read_text()


def test_a_search_that_finds_nothing_where_chance_finds_nothing_fails_its_gate(toy: Any, tmp_path: Path) -> None:
    class Nothing:
        def map(self, function: str, items: Sequence[Any], *others: Any) -> Iterator[tuple[int, Any]]:
            for index, _ in enumerate(items):
                yield index, {which: vars(Score(0.0, 9.0, 64, which == "whole")) for which in ("look", "whole")}

    (tmp_path / "out").mkdir()
    settings = search_config(beat_random=1.0, latency="none")
    trials = search(
        toy[1], settings, devices("pixel-8"), Workspace(tmp_path / "out", tmp_path / "scratch", maps=Nothing())
    )
    (gate,) = trials.read_json("gates.json")["gates"]
    assert gate["value"] is None and not gate["passed"]


def test_without_latency_bytes_count_twice(toy: Any, tmp_path: Path) -> None:
    settings = search_config(latency="none", seeds=[1], trials=3)
    assert settings.latency is LatencySource.none
    made = searched(toy[1], tmp_path / "out", settings, "pixel-8")
    trials = made.trials()
    assert "latency" not in (made.path / "summary.txt").read_text()
    assert all(trial.cost.latency == {} and trial.cost.latency_share == trial.cost.byte_share for trial in trials)


def test_random_search_alone_has_nothing_to_beat(toy: Any, tmp_path: Path) -> None:
    settings = search_config(sampler="random", seeds=[1], trials=3, latency="none", beat_random=1.0)
    trials = searched(toy[1], tmp_path / "out", settings, "pixel-8")
    assert {trial.by for trial in trials.trials()} == {"random"} and len(trials.trials()) == 3
    assert trials.read_json("gates.json") == {"gates": []} and trials.search()["ratio"] is None


class Growing:
    """Scores of a model that answers all the better the wider and deeper it is."""

    def __init__(self, space: Space):
        self.space, self.asked = space, list[dict[str, int]]()

    def accuracy(self, architecture: dict[str, int]) -> float:
        shares = [architecture[each.name] / each.values[0] for each in self.space.dimensions]
        return sum(shares) / len(shares) * 0.9

    def map(self, function: str, items: Sequence[Any], *others: Any) -> Iterator[tuple[int, Any]]:
        for index, item in reversed(list(enumerate(items))):
            self.asked.append(item["architecture"])
            score = Score(self.accuracy(item["architecture"]), 1.0, 64, True)
            yield index, {"look": vars(score), "whole": vars(score)}


def test_refinement_finds_what_lies_beside_the_best_and_keeps_the_bounds(toy: Any, tmp_path: Path) -> None:
    space, profiles, settings = toy[1].space(), devices("pixel-8"), search_config(trials=4, designs=[1, 0], seeds=[1])
    for name in ("trials", "plain", "refined", "again"):
        (tmp_path / name).mkdir()
    maps = Growing(space)
    trials = search(toy[1], settings, profiles, Workspace(tmp_path / "trials", tmp_path / "scratch", maps=maps))
    tried, best = len(maps.asked), {}
    for name, refine in (("plain", 0), ("refined", 8), ("again", 8)):
        config = replace(shortlist_config(2, 0.9, refine=refine), search=settings)
        work = Workspace(tmp_path / name, tmp_path / "scratch", maps=maps)
        best[name] = shortlist(trials, config, profiles["pixel-8"], work, toy[1]).candidates()
        if name == "plain":
            assert len(maps.asked) == tried
    assert best["again"] == best["refined"]
    plain, refined = (best[name][0]["score"]["accuracy"] for name in ("plain", "refined"))
    assert refined > plain
    costs = Costs(space, settings, profiles, (toy[1].path / "tokenizer.json").stat().st_size)
    bounds = [costs.of(each).byte_share for each in space_of(space)]
    assert costs.of(best["refined"][0]["architecture"]).byte_share <= 0.9
    within = [each for each, share in zip(space_of(space), bounds, strict=True) if share <= 0.9]
    assert refined == pytest.approx(max(map(maps.accuracy, within)), abs=0.1)


def space_of(space: Space) -> list[dict[str, int]]:
    names = [each.name for each in space.dimensions]
    return [dict(zip(names, values, strict=True)) for values in product(*(each.values for each in space.dimensions))]


def test_a_device_whose_speed_is_not_known_asks_for_latency_none(toy: Any, tmp_path: Path) -> None:
    profile = devices("pixel-8")["pixel-8"]
    unknown = replace(profile, hardware=replace(profile.hardware, bandwidth_gb_s=None))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="pixel-8"):
        search(toy[1], search_config(), {"pixel-8": unknown}, Workspace(tmp_path / "out", tmp_path / "scratch"))


def test_searches_share_a_database_and_a_study_where_all_else_is_equal(toy: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = {"kind": "rdb", "url": url, "name": "shared"}
    settings, profile = search_config(trials=3, seeds=[1], storage=storage), devices("pixel-8")["pixel-8"]
    faster = replace(profile, hardware=replace(profile.hardware, bandwidth_gb_s=2000.0))
    names, made = [], []
    for place, each in enumerate((profile, profile, faster)):
        out = tmp_path / str(place)
        out.mkdir()
        work = Workspace(out, tmp_path / f"scratch-{place}", maps=Invented())
        made.append(files(search(toy[1], settings, {"pixel-8": each}, work).path))
        names.append(set(optuna.get_all_study_names(url)))
    assert names[0] == names[1] and len(names[0]) == 2 and len(names[2]) == 4
    assert made[0] == made[1] != made[2]


def test_pruning_walks_down_one_step_at_a_time(toy: Any, tmp_path: Path) -> None:
    _, supernet = toy
    trials = searched(supernet, tmp_path / "out", search_config(sampler="prune"), "pixel-8")
    path, space = trials.trials(), supernet.space()
    assert path[0].architecture == space.largest and path[-1].architecture == space.smallest
    assert len(path) == 1 + sum(len(each.values) - 1 for each in space.dimensions)
    for before, after in pairwise(path):
        assert after.architecture in list(space.neighbours(before.architecture))
        assert after.cost.bytes["pixel-8"] <= before.cost.bytes["pixel-8"]
    assert all(trial.by == "prune" and trial.score.whole for trial in path)
    assert trials.read_json("gates.json") == {"gates": []}
    (tmp_path / "shortlist").mkdir()
    made = shortlist(
        trials,
        shortlist_config(1, 0.9),
        devices("pixel-8")["pixel-8"],
        Workspace(tmp_path / "shortlist", tmp_path / "scratch"),
    )
    (candidate,) = made.candidates()
    full = trials.search()["full"]["bytes"]["pixel-8"]
    chosen = next(trial for trial in path if trial.architecture == candidate["architecture"])
    assert chosen.cost.bytes["pixel-8"] <= 0.9 * full


def recovery(**training: Any) -> RecoverConfig:
    teaching = distill_config(**{"checkpoint_every": 2, **training})
    return RecoverConfig(Sampler.nsga2, teaching, 16, 19)


def recovered(toy: Any, path: Path, candidates: list[dict[str, Any]], config: RecoverConfig) -> Checkpoint:
    checkpoint, supernet = toy
    for name in ("shortlist", "out"):
        (path / name).mkdir(parents=True)
    listed = Shortlist(path / "shortlist")
    listed.write_json("shortlist.json", {"candidates": candidates})
    given = {"checkpoint": checkpoint, "supernet": supernet, "shortlist": listed, "config": config}
    return recover(checkpoint, supernet, listed, config, Workspace(path / "out", path / "scratch", given=given))


def candidate(space: Space, share: float) -> dict[str, Any]:
    return {"architecture": space.uniform(share), "score": vars(Score(0.25, 3.0, 64, True)), "parameters": 12_345}


def test_a_candidate_that_is_not_taught_is_what_was_cut_out(toy: Any, tmp_path: Path) -> None:
    space = toy[1].space()
    made = recovered(toy, tmp_path, [candidate(space, 0)], recovery(steps=0))
    assert made.config() == space.configured(space.smallest)
    ranking = made.read_json("ranking.json")
    assert ranking["chosen"] == 0 and ranking["tau"] is None
    (row,) = ranking["candidates"]
    again = score_model(made.model(), Questions(made, 16, 19))
    assert row["recovered"] == vars(again) and row["architecture"] == space.smallest
    assert (made.path / "summary.txt").read_text().startswith("chosen ")
    assert {value.dtype for value in load_file(made.weights).values()} == {torch.float16}


def test_the_best_of_the_taught_candidates_goes_on(toy: Any, tmp_path: Path) -> None:
    space = toy[1].space()
    made = recovered(toy, tmp_path, [candidate(space, 0), candidate(space, 1)], recovery(steps=4))
    ranking = made.read_json("ranking.json")
    rows = ranking["candidates"]
    best = min(rows, key=lambda row: (-row["recovered"]["accuracy"], row["recovered"]["loss"]))
    assert ranking["chosen"] == best["place"]
    assert made.config() == space.configured(best["architecture"])
    assert made.preprocessing()["image_size"] == made.config().vision.image_size
    assert json.dumps(vars(score_model(made.model(), Questions(made, 16, 19)))) == json.dumps(best["recovered"])
    cut = recovered(toy, tmp_path / "cut", [candidate(space, float(best["place"]))], recovery(steps=0))
    assert cut.config() == made.config() and cut.weights.read_bytes() != made.weights.read_bytes()


def test_what_is_searched_and_how_it_is_checked() -> None:
    device = devices("pixel-8")["pixel-8"]
    config = group("recover", "default", sampler="nsga2")
    assert checks.searches(config, device) and not checks.searches(replace(config, sampler=Sampler.off), device)
    checks.recovery(config)
    checks.recovery(recovery(steps=0))
    with pytest.raises(ConfigError, match=r"recover\.images"):
        checks.recovery(replace(config, images=0))
    with pytest.raises(ConfigError, match=r"recover\.training\.learning_rate"):
        checks.recovery(replace(config, training=replace(config.training, learning_rate=0.0)))
