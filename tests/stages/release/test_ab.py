"""`tapeout ab`: what it decides, how often it errs when looked at all the time, and what it refuses to read."""

import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.project import Project
from stages.release.commands.ab import ab
from stages.release.experiments.outcomes import Clusters, Tally
from stages.release.experiments.sequential import least_evidence, mean_radius, rate_difference, share_evidence

ALPHA = 0.05
LOOKS = np.unique(np.geomspace(20, 4000, 25).astype(int)) - 1


def counts(arm: str, n: int, successes: int) -> dict[str, object]:
    return {"arm": arm, "n": n, "successes": successes}


def written(folder: Path, lines: list[object], name: str = "outcomes.jsonl") -> str:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def asked(tmp_path, capsys):
    """Run the command on lines; returns its JSON, with the exit status."""

    def ask(lines: list[object], *options: str) -> dict[str, object]:
        status = ab([written(tmp_path, lines), "--json", *options], Project(tmp_path))
        return {**json.loads(capsys.readouterr().out), "status": status}

    return ask


@pytest.mark.parametrize(
    ("champion", "challenger", "options", "decision", "why"),
    [
        ((20_000, 17_400), (20_000, 17_900), (), "promote", "better"),
        ((60_000, 52_200), (60_000, 52_200), (), "promote", "not worse by as much as the margin"),
        ((2000, 1740), (2000, 1740), (), "continue", "not known well enough"),
        ((2000, 1740), (2000, 1740), ("--margin", "0.1"), "promote", "not worse by as much"),
        ((9000, 7830), (1000, 700), (), "rollback", "worse"),
        ((400_000, 348_000), (400_000, 346_000), (), "promote", "surely worse, but by less than the margin"),
        ((400_000, 348_000), (400_000, 346_000), ("--margin", "0"), "rollback", "worse"),
        ((50, 0), (50, 50), (), "continue", "has 50 of at least 100"),
        ((50, 0), (50, 50), ("--minimum", "20"), "promote", "better"),
        ((0, 0), (1000, 900), (), "continue", "has 0 of at least"),
        ((9000, 300), (9000, 900), ("--higher-is-worse",), "rollback", "worse"),
        ((9000, 900), (9000, 300), ("--higher-is-worse",), "promote", "better"),
        ((9000, 7830), (1000, 990), ("--shares", "champion=90,challenger=10"), "promote", "better"),
        ((9000, 7830), (1400, 1390), ("--shares", "champion=90,challenger=10"), "check", "sizes"),
        ((9000, 7830), (1400, 1390), ("--shares", "champion=80%,challenger=12,other=8"), "promote", "better"),
    ],
)
def test_what_counts_decide(asked, champion, challenger, options, decision, why):
    found = asked([counts("champion", *champion), counts("challenger", *challenger)], *options)
    assert (found["decision"], found["status"]) == (decision, 0)
    assert why in found["why"]
    if found["low"] is not None:
        assert found["low"] <= found["difference"] <= found["high"]


@pytest.mark.parametrize(("require", "status"), [("promote", 0), ("rollback", 1), ("continue", 1)])
def test_a_required_decision_is_the_exit_status(asked, require, status):
    lines = [counts("champion", 20_000, 17_400), counts("challenger", 20_000, 17_900)]
    assert asked(lines, "--require", require)["status"] == status


def test_counts_add_up_and_answers_are_counts(asked, tmp_path):
    """Lines of several files, or an answer a line: the same verdict."""
    whole = asked([counts("champion", 300, 200), counts("challenger", 200, 150)])
    parts = [counts("champion", 100, 90), counts("challenger", 200, 150), "\n", counts("champion", 200, 110)]
    assert asked(parts) == whole
    answers = [{"arm": "champion", "score": int(place < 200)} for place in range(300)]
    answers += [{"arm": "challenger", "score": float(place < 150)} for place in range(200)]
    assert asked(answers) == whole
    second = written(tmp_path, [counts("challenger", 200, 150)], "second.jsonl")
    assert asked([counts("champion", 300, 200)], second) == whole


def test_arms_of_other_names(asked):
    lines = [counts("1.4.0", 20_000, 17_400), counts("1.5.0", 20_000, 17_900)]
    for options in (
        ["--champion", "1.4.0"],
        ["--challenger", "1.5.0"],
        ["--champion", "1.4.0", "--challenger", "1.5.0"],
    ):
        assert asked(lines, *options)["decision"] == "promote"
    assert asked(lines, "--champion", "1.5.0")["decision"] == "rollback"


def test_shares_of_a_channel_s_document(asked, tmp_path):
    document = {"champion": None, "arms": [{"name": "challenger", "ranges": [[0, 500], [700, 1200]]}]}
    path = written(tmp_path, [document], "pixel-8.json")
    lines = [counts("champion", 9000, 7830), counts("challenger", 1000, 990)]
    assert asked(lines, "--document", path)["balanced"] is True
    lines[1] = counts("challenger", 2000, 1980)
    assert asked(lines, "--document", path)["decision"] == "check"


def test_scores_between_follow_their_spread(asked):
    """With a deviation of 0.02, 400 answers say what 40,000 of right or wrong would."""
    rng = np.random.default_rng(3)
    lines = [
        {"arm": arm, "score": round(float(score), 6)}
        for arm, mean in (("champion", 0.80), ("challenger", 0.81))
        for score in rng.normal(mean, 0.02, 400)
    ]
    found = asked(lines)
    assert (found["decision"], found["why"]) == ("promote", "the challenger is better")
    assert found["method"].endswith("asymptotic") and found["high"] - found["low"] < 0.012


def test_an_installation_s_answers_are_one_voice(asked):
    """Ten installations that say the same a hundred times are ten."""
    lines = [
        {"arm": arm, "score": int(place % 10 < good), "installation": f"{arm}{place % 10}"}
        for arm, good in (("champion", 4), ("challenger", 8))
        for place in range(1000)
    ]
    found = asked(lines)
    assert found["decision"] == "continue" and "10 of at least 100" in found["why"]
    assert found["arms"]["champion"] == {"n": 1000, "mean": 0.4, "installations": 10}
    assert asked([{key: line[key] for key in ("arm", "score")} for line in lines])["decision"] == "promote"
    together = asked(lines, "--minimum", "5")
    assert together["low"] < 0 < together["high"]


def test_all_equal_scores_say_nothing(asked):
    lines = [{"arm": arm, "score": 2.5} for arm in ("champion", "challenger") for _ in range(200)]
    found = asked(lines)
    assert (found["decision"], found["low"], found["high"]) == ("continue", None, None)


def test_the_words_for_the_terminal(tmp_path, capsys):
    lines = [counts("champion", 9000, 7830), counts("challenger", 1000, 700)]
    assert ab([written(tmp_path, lines), "--shares", "champion=90,challenger=10"], Project(tmp_path)) == 0
    told = capsys.readouterr().out
    assert told.startswith("ROLL BACK: the challenger is worse\n")
    assert "challenger  0.7 over 1,000 answers" in told and "shares as said" in told


@pytest.mark.parametrize(("rate", "share"), [(0.5, 0.5), (0.9, 0.1), (0.99, 0.5)])
def test_looking_all_the_time_does_not_make_errors_of_counts(rate, share):
    """Of 200 experiments without a difference, looked at 25 times, at most 5 % ever find one."""
    rng = np.random.default_rng(int(1000 * rate))
    challenger, right = rng.random((200, 4000)) < share, rng.random((200, 4000)) < rate
    sums = [
        np.cumsum(each, axis=1)[:, LOOKS] for each in (~challenger, challenger, ~challenger & right, challenger & right)
    ]
    wrong = least_evidence(0.0, (sums[0], sums[1]), (sums[2], sums[3])) > math.log(1 / ALPHA)
    assert wrong.any(axis=1).mean() <= ALPHA


@pytest.mark.parametrize("kind", ["skewed", "latency"])
def test_looking_all_the_time_does_not_make_errors_of_scores(kind):
    """The same, from the minimum of 100 answers an arm on; 10 % of the answers are the challenger's."""
    rng = np.random.default_rng(7)
    scores = rng.beta(9, 1, (400, 6000)) if kind == "skewed" else rng.lognormal(3, 0.6, (400, 6000))
    challenger = rng.random(scores.shape) < 0.1
    looks = np.unique(np.geomspace(900, 6000, 100).astype(int)) - 1
    means, variances, sizes = [], [], []
    for arm in (~challenger, challenger):
        n, total, squares = (np.cumsum(arm * each, axis=1)[:, looks] for each in (1.0, scores, scores**2))
        means.append(total / n)
        variances.append((squares - total**2 / n) / (n - 1) / n)
        sizes.append(n)
    radius = mean_radius(sum(variances), sum(sizes), ALPHA)
    wrong = (np.abs(means[1] - means[0]) > radius) & (np.minimum(*sizes) >= 100)
    assert wrong.any(axis=1).mean() <= ALPHA


def test_looking_all_the_time_does_not_find_shares_wrong():
    rng = np.random.default_rng(1)
    found = np.cumsum(rng.random((1000, 5000)) < 0.1, axis=1)[:, ::50]
    evidence = share_evidence((np.arange(1, 5001)[::50] - found, found), 0.1)
    assert (evidence > math.log(1 / ALPHA)).any(axis=1).mean() <= ALPHA
    assert share_evidence((8800, 1200), 0.1) > math.log(1000)  # and a real fault is found


def test_a_real_difference_is_found():
    """Five points, 5,000 answers an arm: nearly always. Half as many as a plain test would need are never enough."""
    rng = np.random.default_rng(2)
    ends = [
        rate_difference((5000, 5000), (int(rng.binomial(5000, 0.85)), int(rng.binomial(5000, 0.90))), ALPHA)[0]
        for _ in range(20)
    ]
    assert sum(end > 0 for end in ends) >= 18
    assert all(rate_difference((150, 150), (127, 135), ALPHA)[side] * (side - 0.5) > 0 for side in (0, 1))


def test_the_interval_is_the_same_from_the_other_side():
    low, high = rate_difference((700, 90), (600, 60), ALPHA)
    turned = rate_difference((90, 700), (60, 600), ALPHA)
    assert (low, high) == pytest.approx((-turned[1], -turned[0]), abs=1e-6)
    assert rate_difference((5, 5), (0, 5), ALPHA)[1] == pytest.approx(1.0)


def test_the_exact_interval_is_18_percent_wider_than_the_asymptotic_one():
    low, high = rate_difference((10_000, 10_000), (8700, 8700), ALPHA)
    assert (high - low) / 2 / mean_radius(2 * 0.87 * 0.13 / 10_000, 20_000, ALPHA) == pytest.approx(1.18, abs=0.01)


def test_groups_tell_the_error_of_a_mean_of_installations():
    """Against the spread of the mean over 300 drawn experiments, each with installations of 1 to 9 answers."""
    rng = np.random.default_rng(5)
    means, variances = [], []
    for _ in range(100):
        tally = Tally()
        for place in range(150):
            taste = rng.normal()
            for _ in range(rng.integers(1, 10)):
                tally.add_score(taste + 0.1 * rng.normal(), f"{place}")
        means.append(tally.mean)
        variances.append(tally.variance)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.35)


def test_installations_are_counted_in_memory_that_does_not_grow():
    clusters = Clusters()
    for place in range(60_000):
        clusters.add(1.0, f"installation-{place % 30_000}")
    assert clusters.count == pytest.approx(30_000, rel=0.002)


GOOD = counts("champion", 10, 5)


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        (["{}\n"], "line 1: there is no 'arm'", "champion"),
        ([GOOD, "[1]\n"], "line 2: found [1], which is no object", "expected"),
        ([GOOD, "\n", "{'arm'\n"], "line 3: not JSON", "expected"),
        ([GOOD, {**GOOD, "sucesses": 1}], 'unknown key "sucesses"', "did you mean 'successes'?"),
        ([{"arm": "champion", "n": 10}], "found n beside the arm", "score"),
        ([{"arm": "champion"}], "found nothing beside the arm", "score"),
        ([counts("champion", 10, 11)], "11 successes of 10", ""),
        ([counts("champion", -1, 0)], "n is -1; expected a whole number from 0", ""),
        ([counts("champion", 10, 2.5)], "successes is 2.5", ""),
        ([counts("champion", True, 0)], "n is true", ""),
        ([counts("champion", 10**400, 0)], "n is 1000", ""),
        (['{"arm": "champion", "score": NaN}\n'], "NaN is no number", ""),
        (['{"arm": "champion", "score": 1e999}\n'], "score is Infinity", ""),
        ([{"arm": "champion", "score": "1"}], 'score is "1"; expected a number', ""),
        ([{"arm": "champion", "score": True}], "score is true", "write 1"),
        ([{"arm": 7, "score": 1}], "'arm' is 7", ""),
        ([{"arm": "champion", "score": 1, "installation": None}], "installation is null", ""),
        (['{"arm": "champion", "arm": "x", "score": 1}\n'], "'arm' is there twice", ""),
        ([GOOD, {"arm": "champion", "score": 1}], "line 2: found scores, where", "one kind"),
        ([{"arm": "a", "score": 1, "installation": "x"}, {"arm": "a", "score": 1}], "found scores, where", "one kind"),
        ([GOOD], "which arm is which is open; found champion", "--challenger"),
        ([counts("a", 1, 1), counts("b", 1, 1)], "which arm is which is open; found a, b", "--champion"),
        ([GOOD, counts("a", 1, 1), counts("b", 1, 1)], "which arm is which is open", "--challenger"),
        ([counts(str(place), 1, 1) for place in range(17)], "line 17", "one experiment"),
        (["\n"], "there are no outcomes", "expected lines"),
        (["x" * 70_000 + "\n"], "line 1: more than 65536 bytes", ""),
    ],
)
def test_lines_that_say_nothing_are_named(tmp_path, lines, message, hint):
    with pytest.raises(ConfigError) as caught:
        ab([written(tmp_path, lines)], Project(tmp_path))
    assert message in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--champion", "champion", "--challenger", "chalenger"], 'unknown arm "challenger"'),
        (["--challenger", "c2"], "there are no outcomes of 'c2'"),
        (["--shares", "champion=90"], "unknown arm"),
        (["--shares", "champion=90,challenger=x"], "'challenger=x'"),
        (["--shares", "champion=90,challenger=-1"], "'challenger=-1'"),
        (["--alpha", "1"], "--alpha 1"),
        (["--margin", "nan"], "--margin nan"),
        (["--minimum", "0"], "--minimum 0"),
        (["--champion", "a", "--challenger", "a"], "cannot be both arms"),
        (["--sahres", "x"], "--sahres"),
        (["--document", "nowhere.json"], "nowhere.json cannot be read"),
        (["--require", "yes"], "--require"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    path = written(tmp_path, [counts("champion", 1000, 900), counts("challenger", 1000, 900)])
    with pytest.raises(ConfigError) as caught:
        ab([path, *options], Project(tmp_path))
    assert message in caught.value.message


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"arms": [{"name": "a"}]}', '{"arms": [{"name": "a", "ranges": [1]}]}', "x"]
)
def test_what_is_no_channel_s_document_is_refused(tmp_path, text):
    path = written(tmp_path, [counts("champion", 10, 9), counts("a", 10, 9)])
    with pytest.raises(ConfigError, match=r"no channel's document|no share"):
        ab([path, "--document", written(tmp_path, [text], "document.json")], Project(tmp_path))


def test_memory_does_not_grow_with_the_lines(tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    line = '{"arm": "%s", "n": 1, "successes": 1}\n'
    path.write_text((line % "champion" + line % "challenger") * 20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ab([str(path)], Project(tmp_path)) == 0
    assert "20,000 answers" in capsys.readouterr().out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
