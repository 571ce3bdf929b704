"""What promotions, rollbacks and retirements make of channels; and what a signed history cannot say."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError, ReleaseError, VerificationError
from stages.release.history.decision import Decision
from stages.release.history.entry import FIRST, Entry, parse
from stages.release.history.promoting import promotion
from stages.release.history.reverting import retirement, rollback
from stages.release.history.rollout import BUCKETS, arm_of
from stages.release.history.state import State, state_of

DEVICES = ("phone", "watch")
VERSIONS = ("1.0", "1.1", "1.2", "2.0")


class Told:
    """A history without signatures: what was decided, through JSON and back."""

    def __init__(self):
        self.entries = []
        for version in VERSIONS:
            made = {device: {"bundle": digest(version, device), "archive": "ab" * 32} for device in DEVICES}
            self.add(Decision("create", "demo", version, DEVICES, (), releases=made))

    def add(self, decision):
        number = len(self.entries) + 1
        entry = Entry(
            sequence=number,
            previous=self.entries[-1].digest if self.entries else FIRST,
            time="2026-01-01T00:00:00Z",
            who={"keyid": "k", "name": "k"},
            action=decision.action,
            **decision.to_entry(),
        )
        if decision.changes:
            self.entries.append(replace(parse(entry.payload(), "entry"), digest=f"{number:064x}"))
        return decision

    @property
    def state(self) -> State:
        return state_of(self.entries)

    @property
    def following(self):
        return len(self.entries) + 1, self.entries[-1].digest

    def promote(self, version, *devices, channel="stable", **options):
        return self.add(promotion(self.state, version, channel, devices, self.following, **options))

    def rollback(self, *devices, channel="stable"):
        return self.add(rollback(self.state, channel, devices))

    def retire(self, version, *devices, force=False):
        return self.add(retirement(self.state, version, devices, force))

    def seen(self, device="phone", channel="stable"):
        """The champion, and the arms with their shares."""
        found = self.state.channel(channel, device)
        arms = {arm.name: (arm.version, arm.share) for arm in found.arms}
        return found.champion.version if found.champion else None, arms


def digest(version, device):
    return f"{VERSIONS.index(version) * 2 + DEVICES.index(device) + 1:064x}"


@pytest.fixture
def told():
    return Told()


def test_a_promotion_is_for_all_devices_of_the_release_or_those_named(told):
    assert told.promote("1.0").lines[0] == "new channel stable"
    told.promote("1.1", "watch")
    assert (told.seen("phone"), told.seen("watch")) == (("1.0", {}), ("1.1", {}))


def test_a_document_says_all_that_a_client_needs(told):
    told.promote("1.0")
    told.promote("1.1", share=10)
    told.retire("2.0", "phone")
    document = told.state.channel("stable", "phone").document()
    salt = document.pop("salt")
    assert json.loads(json.dumps(document)) == {
        "channel_version": 1,
        "channel": "stable",
        "device": "phone",
        "sequence": 7,
        "champion": {"version": "1.0", "bundle": digest("1.0", "phone")},
        "arms": [{"name": "challenger", "version": "1.1", "bundle": digest("1.1", "phone"), "ranges": [[0, 1000]]}],
        "revoked": [digest("2.0", "phone")],
    }
    assert len(salt) == 32 and told.state.channel("stable", "watch").sequence == 6  # it has none to revoke


def test_arms_grow_shrink_and_end(told):
    told.promote("1.0")
    told.promote("1.1", share=10)
    told.promote("1.2", share=20, arm="bold")
    told.promote("1.1", share=30)
    assert told.seen() == ("1.0", {"challenger": ("1.1", 30), "bold": ("1.2", 20)})
    assert told.state.channel("stable", "phone").arms[0].ranges == ((0, 1000), (3000, 5000))
    told.promote("1.1", share=5)
    told.promote("1.2", share=0, arm="bold")
    assert told.seen() == ("1.0", {"challenger": ("1.1", 5)})
    told.promote("1.1")
    assert told.seen() == ("1.1", {})


def test_a_new_experiment_draws_new_buckets_and_a_running_one_does_not(told):
    seen = []
    for version, options in (
        ("1.0", {}),
        ("1.1", {"share": 1}),
        ("1.1", {"share": 50}),
        ("1.2", {"share": 5, "arm": "b"}),
        ("1.1", {"share": 0}),
        ("1.2", {}),
        ("2.0", {"share": 1}),
    ):
        told.promote(version, **options)
        seen.append(told.state.channel("stable", "phone").document())
    salts = [document["salt"] for document in seen]
    first, running, again = salts[0], salts[1], salts[6]
    assert salts == [first, running, running, running, running, running, again] and len(set(salts)) == 3
    assert told.state.channel("stable", "watch").salt not in salts
    drawn = [{n for n in range(3000) if arm_of(document, str(n))} for document in (seen[1], seen[6])]
    assert all(10 < len(each) < 60 for each in drawn) and len(drawn[0] & drawn[1]) < 5


def test_rollback_ends_arms_first_then_goes_back_champion_by_champion(told):
    for version in ("1.0", "1.1", "1.2"):
        told.promote(version)
    told.promote("2.0", share=10)
    assert "challenger (2.0, 10 %) ended; all have 1.2" in told.rollback().lines[0]
    for expected in ("1.1", "1.0"):
        told.rollback()
        assert told.seen() == (expected, {})
    with pytest.raises(ReleaseError, match="nothing to go back to for phone"):
        told.rollback()
    told.promote("2.0")
    told.rollback()
    assert told.seen() == ("1.0", {})


def test_rollback_of_several_devices_is_one_step_for_all(told):
    told.promote("1.0")
    told.promote("1.1")
    told.promote("1.2", "phone", share=10)
    assert told.rollback().devices == ("phone",)  # the watch's champion stays
    assert (told.seen("phone"), told.seen("watch")) == (("1.1", {}), ("1.1", {}))
    told.promote("1.2", "watch")
    told.rollback("watch")
    assert (told.seen("phone"), told.seen("watch")) == (("1.1", {}), ("1.1", {}))


def test_rollback_passes_over_what_was_retired(told):
    for version in ("1.0", "1.1", "1.2"):
        told.promote(version)
    told.retire("1.1")
    told.rollback()
    assert told.seen() == ("1.0", {})


def test_what_is_served_is_retired_by_force_alone_and_rolled_back_in_the_same_entry(told):
    told.promote("1.0")
    told.promote("1.1")
    told.promote("1.2", share=10)
    told.promote("1.1", channel="beta", new_channel=True, share=None)
    for version, served in (("1.1", "champion"), ("1.2", "challenger")):
        with pytest.raises(ReleaseError, match=f"{version} is still {served} of channel stable"):
            told.retire(version)
    count = len(told.entries)
    told.retire("1.1", force=True)
    assert len(told.entries) == count + 1
    assert told.seen() == ("1.0", {"challenger": ("1.2", 10)}) and told.seen(channel="beta") == (None, {})
    assert told.state.channel("beta", "phone").revoked == (digest("1.1", "phone"),)
    with pytest.raises(ReleaseError, match=r"1\.1 was retired for phone, watch"):
        told.promote("1.1")
    assert not told.retire("1.1").changes


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda t: t.promote("1.3"), ConfigError, "there is no release '1.3'\n  did you mean '1.2'"),
        (lambda t: t.promote("1.1", "phnoe"), ConfigError, "not for 'phnoe'\n  did you mean 'phone'"),
        (lambda t: t.promote("1.1", channel="stabel"), ConfigError, "did you mean 'stable'"),
        (lambda t: t.promote("1.1", channel="prod"), ConfigError, "--new-channel makes it"),
        (lambda t: t.promote("1.1", channel="Stable", new_channel=True), ConfigError, "lower-case"),
        (lambda t: t.promote("1.1", channel="../up", new_channel=True), ConfigError, "lower-case"),
        (lambda t: t.promote("1.1", arm="x"), ConfigError, "an arm needs its share"),
        (lambda t: t.promote("1.1", arm="a-b", share=1), ConfigError, "an arm's name"),
        (lambda t: t.promote("1.1", arm="champion", share=1), ConfigError, "leave --share out"),
        (lambda t: t.promote("1.1", share=101), ConfigError, "between 0 and 100"),
        (lambda t: t.promote("1.2", share=95, arm="x"), ConfigError, "at most 90 % are left"),
        (lambda t: t.promote("1.2", share=20), ReleaseError, "arm challenger is 1.1, not 1.2"),
        (lambda t: t.promote("1.2", share=0, arm="x"), ReleaseError, "there is no arm x to end"),
        (lambda t: t.promote("1.1", channel="beta", new_channel=True, share=5), ReleaseError, "has no champion"),
        (lambda t: t.rollback(channel="stabel"), ConfigError, "did you mean 'stable'"),
        (lambda t: t.rollback("tablet"), ConfigError, "nothing for 'tablet'"),
        (lambda t: t.retire("9"), ConfigError, "there is no release '9'"),
    ],
)
def test_what_is_refused_changes_nothing(told, act, error, message):
    told.promote("1.0")
    told.promote("1.1", share=10)
    before = list(told.entries)
    with pytest.raises(error) as refused:
        act(told)
    assert message in str(refused.value) and told.entries == before
    assert refused.value.exit_status == (2 if error is ConfigError else 1)


def test_what_is_so_already_is_not_recorded(told):
    told.promote("1.0")
    told.promote("1.1", share=10)
    assert not told.promote("1.1", share=10).changes
    told.rollback()
    assert not told.promote("1.0").changes


ACTS = st.tuples(
    st.sampled_from(["promote", "arm", "rollback", "retire"]),
    st.sampled_from(VERSIONS),
    st.sampled_from([(), *((device,) for device in DEVICES)]),
    st.sampled_from("ab"),
    st.integers(0, 60),
)


@given(st.lists(ACTS, max_size=15))
def test_any_order_of_commands_keeps_channels_sound(acts):
    told = Told()
    for act, version, devices, arm, share in acts:
        try:
            if act == "rollback":
                told.rollback(*devices)
            elif act == "retire":
                told.retire(version, *devices, force=True)
            else:
                told.promote(version, *devices, **({"share": share, "arm": arm} if act == "arm" else {}))
        except (ConfigError, ReleaseError):
            continue
        state = told.state  # the fold itself refuses what cannot be
        for channel in state.channels.values():
            served = [state.releases[each.version, channel.device] for each in channel.serving]
            assert not any(release.retired for release in served)
            assert sum(each.share for each in channel.arms) <= 100 and (channel.champion or not channel.arms)
            assert channel.salt and channel.sequence <= state.sequence


def entry(told, action="promote", version="1.0", devices=("phone",), releases=None, set=None):
    value = {"version": version, "devices": devices, "releases": releases or {}, "set": set or {}}
    return Entry(len(told.entries) + 1, FIRST, "2026-01-01T00:00:00Z", {"keyid": "k", "name": "k"}, action, "demo",
                 channel="stable", **value)  # fmt: skip


def channel(**members):
    """A channel as an entry sets it. members: others than a good one's."""
    good = {"champion": {"version": "1.0", "bundle": digest("1.0", "phone")}, "arms": [], "salt": "s", "former": []}
    return {"stable": {"phone": {**good, **members}}}


def arm(name="a", low=0, high=100, version="1.1", **members):
    return {"name": name, "version": version, "bundle": digest("1.1", "phone"), "ranges": [[low, high]], **members}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"set": channel(champion={"version": "3.0", "bundle": "ab" * 32})}, "was never created"),
        ({"set": channel(champion={"version": "1.0", "bundle": "ab" * 32})}, "was never created so"),
        ({"set": channel(champion={"version": "1.0"})}, "not a channel's"),
        ({"set": channel(champion="1.0")}, "not a channel's"),
        ({"set": channel(salt=7)}, "not a channel's"),
        ({"set": channel(former=["0.9"])}, "never created"),
        ({"set": {"stable": {"phone": []}}}, "not a channel's"),
        ({"set": channel(arms=[arm(), arm("b", 99, 200)])}, "ranges of arms overlap"),
        ({"set": channel(arms=[arm(high=BUCKETS + 1)])}, "ranges of arms overlap"),
        ({"set": channel(arms=[arm(low=5, high=5)])}, "ranges of arms overlap"),
        ({"set": channel(arms=[arm(low=0.5)])}, "not a channel's"),
        ({"set": channel(arms=[arm(), arm(low=200, high=300)])}, "two arms have one name"),
        ({"set": channel(arms=[arm("champion")])}, "two arms have one name"),
        ({"action": "create", "releases": {"phone": {"bundle": "ab" * 32, "archive": "ab" * 32}}}, "created before"),
        ({"action": "retire", "version": "3.0"}, "never created"),
    ],
)
def test_a_history_that_says_what_cannot_be_is_refused(told, wrong, message):
    """Whoever has the key may sign anything; readers take no harm from it."""
    with pytest.raises(VerificationError, match=message) as error:
        state_of([*told.entries, entry(told, **wrong)])
    assert "entry 5" in error.value.message


@pytest.mark.parametrize(
    "members",
    [
        {"sequence": "1"}, {"sequence": True}, {"previous": "ab"}, {"time": "yesterday"}, {"who": {"keyid": 1}},
        {"action": "delete"}, {"devices": []}, {"devices": [1]}, {"channel": 1}, {"reason": None},
        {"releases": {"phone": {"bundle": "x", "archive": "y"}}}, {"set": []}, {"extra": 1},
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(told, members):
    payload = json.dumps({**told.entries[0].to_json(), **members}).encode()
    with pytest.raises(VerificationError, match="line 1"):
        parse(payload, "line 1")
