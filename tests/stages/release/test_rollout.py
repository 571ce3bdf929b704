"""Buckets, arms and shares: who gets what, and who stays where he is when shares change."""

import itertools
import json
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from stages.release.history.rollout import BUCKETS, arm_of, bucket, resized, share_of


def document(salt="s", **arms):
    """A channel's document as a client has it: after JSON."""
    value = {"salt": salt, "arms": [{"name": name, "ranges": ranges} for name, ranges in arms.items()]}
    return json.loads(json.dumps(value))


def members(ranges):
    return {place for low, high in ranges for place in range(low, high)}


@pytest.mark.parametrize(
    ("installation", "salt", "expected"),
    [
        ("", "", 9049),  # sha256(":") begins with e7ac0786668e0ff0
        ("3f0c", "salt", 710),
        ("installation", "2a", 4996),
        ("ünïcode", "☃", 3279),
    ],
)
def test_a_bucket_is_the_same_in_any_language(installation, salt, expected):
    assert bucket(installation, salt) == expected


def test_each_arm_has_its_share_of_installations_and_growing_keeps_the_first():
    ids = [str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128)) for number in range(100_000)]
    small = resized([], [], 10)
    other = resized([], [small], 25)
    large = resized(small, [other], 30)
    documents = (document(a=small, b=other), document(a=large, b=other))
    before, after = ({each: arm_of(value, each) for each in ids} for value in documents)
    shares = Counter(arm["name"] if arm else "champion" for arm in after.values())
    for name, share in {"a": 30, "b": 25, "champion": 45}.items():
        assert abs(shares[name] / 1000 - share) <= 0.5
    assert abs(sum(arm is not None and arm["name"] == "a" for arm in before.values()) / 1000 - 10) <= 0.5
    assert all(after[each]["name"] == arm["name"] for each, arm in before.items() if arm)


def test_another_salt_draws_others():
    ids = [f"id-{number}" for number in range(2000)]
    first, second = ({each for each in ids if arm_of(document(salt, a=[[0, 1000]]), each)} for salt in ("one", "two"))
    assert 0.02 < len(first & second) / len(first) < 0.25  # a tenth, not all


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, BUCKETS)), max_size=12))
def test_arms_never_overlap_and_keep_their_members_in_any_order_of_changes(steps):
    arms = {name: () for name in "abc"}
    for name, wanted in steps:
        others = [arms[each] for each in arms if each != name]
        if wanted + sum(len(members(each)) for each in others) > BUCKETS:
            with pytest.raises(ConfigError, match="the other arms have"):
                resized(arms[name], others, wanted / 100)
            continue
        before = members(arms[name])
        arms[name] = resized(arms[name], others, wanted / 100)
        after = members(arms[name])
        assert len(after) == sum(high - low for low, high in arms[name]) == wanted
        assert after <= before or before <= after
        assert all(not members(a) & members(b) for a, b in itertools.combinations(arms.values(), 2))
        assert all(0 <= low < high <= BUCKETS for each in arms.values() for low, high in each)


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=8))
def test_what_was_taken_last_is_given_back_first(sizes):
    """Going back to an earlier share gives exactly those who had it then, whatever lies between."""
    between, ranges, seen = resized([], [], 30), (), {0: set()}
    between = resized(between, [], 12.34)
    for wanted in sizes:
        ranges = resized(ranges, [between], wanted / 100)
        for earlier, then in seen.items():
            assert earlier > wanted or then <= members(ranges)
        seen = {size: then for size, then in seen.items() if size <= wanted} | {wanted: members(ranges)}


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (-0.01, "between 0 and 100"),
        (100.01, "between 0 and 100"),
        (float("nan"), "between 0 and 100"),
        (33.333, "the nearest share is 33.33"),
        (60, "at most 50 % are left"),
    ],
)
def test_shares_that_cannot_be(share, message):
    with pytest.raises(ConfigError, match=message):
        resized([], [[(0, 3000)], [(5000, 7000)]], share)


@pytest.mark.parametrize("share", [0, 0.01, 0.07, 1.15, 10, 33.33, 100])
def test_two_decimals_are_exact(share):
    assert share_of(resized([], [], share)) == pytest.approx(share, abs=1e-12)
