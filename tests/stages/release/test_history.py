"""The signed history: what its readers notice, and what its writers survive."""

import base64
import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StoreError, VerificationError
from stages.release.history import history as history_module
from stages.release.history.entry import FIRST, PAYLOAD_TYPE, Entry
from stages.release.history.history import History, check_expected, read
from stages.release.signing.dsse import sign_envelope
from stages.release.signing.keys import load_signing_key, new_key

NEW = {"name": "demo", "version": "1.0.0", "devices": ("pixel-8",)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {
        name: new_key(folder / name, kind) for name, kind in {"a": "p256", "b": "ed25519", "stranger": "p256"}.items()
    }


@pytest.fixture
def history(tmp_path, keys):
    """Five entries, by two keys in turn."""
    history = History(tmp_path / "releases" / "history.jsonl")
    for number in range(5):
        append(history, keys, "ab"[number % 2], f"entry {number + 1}")
    return history


def trusted(keys):
    return [keys["a"].public, keys["b"].public]


def append(history, keys, name="a", reason="", who=""):
    with history.writing(trusted(keys)) as writing:
        return writing.append(keys[name], who, "rollback", channel="stable", reason=reason, **NEW)


def rewritten(history, lines):
    history.path.write_bytes(b"".join(line + b"\n" for line in lines))


def signed(key, entry):
    return sign_envelope(entry.payload(), PAYLOAD_TYPE, [key])


def test_entries_come_back_in_order_and_chained(history, keys):
    entries = history.entries(trusted(keys))
    lines = history.path.read_bytes().splitlines()
    assert [entry.reason for entry in entries] == [f"entry {number}" for number in range(1, 6)]
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in entries] == [FIRST, *(hashlib.sha256(line).hexdigest() for line in lines[:4])]
    assert entries[0].who == {"keyid": keys["a"].public.keyid, "name": "a"}
    assert entries[1].time.endswith("Z") and abs(time.time() - os.stat(history.path).st_mtime) < 60
    assert append(history, keys, who="release team").who["name"] == "release team"


def test_no_history_is_an_empty_one(tmp_path, keys):
    assert History(tmp_path / "none" / "history.jsonl").entries(trusted(keys)) == []


def changed(lines, number, find, put):
    """Change a signed payload without signing it anew."""
    value = json.loads(lines[number])
    payload = base64.b64decode(value["payload"])
    assert find in payload
    value["payload"] = base64.b64encode(payload.replace(find, put)).decode()
    return [*lines[:number], json.dumps(value, separators=(",", ":")).encode(), *lines[number + 1 :]]


def forged(keys, lines, number, name, **members):
    """A line in place of another, signed by somebody who has a key."""
    previous = hashlib.sha256(lines[number - 1]).hexdigest() if number else FIRST
    entry = Entry(number + 1, previous, "2026-01-01T00:00:00Z", {"keyid": keys[name].public.keyid, "name": name},
                  "rollback", channel="stable", **NEW)  # fmt: skip
    return [*lines[:number], signed(keys[name], replace(entry, **members)), *lines[number + 1 :]]


ATTACKS = {
    "a changed byte": (lambda k, x: changed(x, 2, b"entry 3", b"entry 4"), 3, "does not belong to it"),
    "a changed last byte": (lambda k, x: changed(x, 4, b"entry 5", b"entry 6"), 5, "does not belong to it"),
    "a removed line": (lambda k, x: [*x[:1], *x[2:]], 2, "holds entry 3, expected 2: one before it was removed"),
    "the first line removed": (lambda k, x: x[1:], 1, "holds entry 2, expected 1"),
    "two lines exchanged": (lambda k, x: [x[0], x[2], x[1], *x[3:]], 2, "holds entry 3, expected 2"),
    "a line twice": (lambda k, x: [*x[:2], x[1], *x[2:]], 3, "holds entry 2, expected 3: it stands twice"),
    "replaced by a trusted key": (lambda k, x: forged(k, x, 1, "a"), 3, "line 2 was changed or replaced"),
    "signed by a stranger": (lambda k, x: forged(k, x, 4, "stranger"), 5, "signed by no key that is trusted"),
    "in another's name": (
        lambda k, x: forged(k, x, 4, "a", who={"keyid": k["b"].public.keyid, "name": "b"}), 5, "says that"),
    "of another history": (lambda k, x: forged(k, x, 4, "a", previous="ab" * 32), 5, "another history"),
    "of a newer version": (
        lambda k, x: [*x[:4], sign_envelope(b'{"entry_version":2}', PAYLOAD_TYPE, [k["a"]])], 5, "entry of version 2"),
    "something else that was signed": (
        lambda k, x: [*x[:4], sign_envelope(b"{}", "application/vnd.in-toto+json", [k["a"]])], 5, "expected"),
    "an entry with more in it": (
        lambda k, x: [*x[:4], sign_envelope(b'{"entry_version":1,"more":1}', PAYLOAD_TYPE, [k["a"]])], 5, "members"),
    "a device that is a path": (
        lambda k, x: forged(k, x, 4, "a", devices=("../../x",)), 5, "devices holds '../../x'"),
    "a version that is a path": (lambda k, x: forged(k, x, 4, "a", version="../x"), 5, "version holds '../x'"),
    "a channel's device that is a path": (
        lambda k, x: forged(k, x, 4, "a", set={"stable": {"../x": {}}}), 5, "set holds '../x'"),
    "a release for another device": (
        lambda k, x: forged(k, x, 4, "a", releases={"../x": {"bundle": "a" * 64, "archive": "a" * 64}}), 5,
        "releases holds '../x'"),
    "an action that a terminal obeys": (
        lambda k, x: forged(k, x, 4, "a", action="\x1b[2J"), 5, "its action is '\\x1b[2J'"),
    "no JSON": (lambda k, x: [*x[:2], b"what is this", *x[3:]], 3, "not JSON"),
    "an empty line": (lambda k, x: [*x[:2], b"", *x[2:]], 3, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_named_with_their_line(history, keys, attack):
    change, line, message = ATTACKS[attack]
    lines = history.path.read_bytes().splitlines()
    rewritten(history, change(keys, lines))
    for use in (lambda: history.entries(trusted(keys)), lambda: append(history, keys)):
        before = history.path.read_bytes()
        with pytest.raises(VerificationError) as error:
            use()
        assert f"{history.path}, line {line}" in error.value.message and message in error.value.message
        assert history.path.read_bytes() == before


def test_a_key_is_replaced_by_one_that_vouches_for_it(history, keys):
    """The last entry is key a's, which is taken away."""
    only_b = [keys["b"].public]
    with pytest.raises(
        VerificationError, match=f"line 5: signed by no key that is trusted, but by {keys['a'].public.keyid}"
    ):
        history.entries(only_b)
    append(history, keys, "b")
    assert len(history.entries(only_b)) == 6
    before = history.path.read_bytes()
    append(history, keys, "a", "by who has stolen it")
    for use in (lambda: history.entries(only_b), lambda: history.writing(only_b).__enter__()):
        with pytest.raises(VerificationError, match="line 7: signed by no key that is trusted"):
            use()
    lines = before.splitlines()
    rewritten(history, forged(keys, lines, 4, "a"))  # in the old part of the history
    with pytest.raises(VerificationError, match=r"line 6: .* line 5 was changed or replaced"):
        history.entries(only_b)


def test_entries_of_a_former_key_are_checked_against_it(history, keys):
    """Entries 1, 3 and 5 are key a's, which is trusted no more."""
    append(history, keys, "b")
    only_b = [keys["b"].public]
    assert history.read(only_b).unchecked == (1, 3, 5) and history.read(trusted(keys)).unchecked == ()
    former = history.path.parent / "keys" / "former"
    former.mkdir(parents=True)
    (former / "a.pub").write_bytes(keys["a"].public.pem)
    assert history.read(only_b).unchecked == () and len(history.entries(only_b)) == 6
    lines = history.path.read_bytes().splitlines()
    value = json.loads(lines[4])
    value["signatures"][0]["sig"] = base64.b64encode(keys["stranger"].sign(b"x")).decode()
    lines[4] = json.dumps(value, separators=(",", ":")).encode()
    rewritten(history, forged(keys, lines, 5, "b"))  # by who has key b, over an entry that a never signed
    with pytest.raises(VerificationError, match=r"line 5: the signature of a .* does not belong to it"):
        history.entries(only_b)
    (former / "a.pub").unlink()
    assert history.read(only_b).unchecked == (1, 3, 5)  # without its key nobody can tell


def test_every_byte_counts(history, keys):
    data = history.path.read_bytes()
    for place in range(0, len(data) - 1, 37):
        history.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(VerificationError):
            history.entries(trusted(keys))


@pytest.fixture(scope="module")
def sound(tmp_path_factory, keys):
    """The bytes of five entries."""
    history = History(tmp_path_factory.mktemp("sound") / "history.jsonl")
    for _ in range(5):
        append(history, keys)
    return history.path.read_bytes()


@settings(max_examples=300)
@given(st.data())
def test_whatever_becomes_of_the_file_nothing_but_what_was_signed_is_read(sound, keys, data):
    place = data.draw(st.integers(0, len(sound)))
    gone, put = data.draw(st.integers(0, 400)), data.draw(st.binary(max_size=40))
    damaged = sound[:place] + put + sound[place + gone :]
    good = read(sound, trusted(keys), "history").entries
    try:
        found = read(damaged, trusted(keys), "history").entries
    except VerificationError:
        return
    assert found == good[: len(found)]  # its end is gone, and no more
    assert damaged == sound or place + gone >= len(sound) - 1


def test_a_cut_end_is_seen_by_who_has_kept_the_head(history, keys):
    whole = history.read(trusted(keys))
    kept = whole.head
    lines = history.path.read_bytes().splitlines()
    rewritten(history, lines[:3])
    cut = history.read(trusted(keys))
    assert len(cut.entries) == 3  # by itself it is a good history
    with pytest.raises(
        VerificationError, match="has 3 entries, and is expected to have 5 or more: its end was cut off"
    ):
        check_expected(cut, kept, "history")
    append(history, keys)
    append(history, keys)
    with pytest.raises(VerificationError, match=r"entry 5 is .* another history"):
        check_expected(history.read(trusted(keys)), kept, "history")
    check_expected(whole, kept, "history")
    check_expected(whole, whole.entries[1].head, "history")  # it has gone on since
    with pytest.raises(ConfigError, match="SEQUENCE:SHA256"):
        check_expected(whole, "5", "history")


@pytest.mark.parametrize("left", [1, 300, -2])
def test_what_a_killed_writer_left_is_dropped(history, keys, left):
    """left: bytes of the sixth line that were written; negative: all but so many."""
    data = history.path.read_bytes()
    append(history, keys, reason="lost")
    line = history.path.read_bytes()[len(data) :]
    history.path.write_bytes(data + line[:left])
    log = history.read(trusted(keys))
    assert (len(log.entries), log.torn) == (5, len(line[:left]))
    append(history, keys, reason="next")
    assert [entry.reason for entry in history.entries(trusted(keys))[-2:]] == ["entry 5", "next"]
    assert history.read(trusted(keys)).torn == 0


def test_an_entry_without_its_newline_is_whole(history, keys):
    history.path.write_bytes(history.path.read_bytes()[:-1])
    assert len(history.entries(trusted(keys))) == 5
    append(history, keys, reason="next")
    assert [entry.reason for entry in history.entries(trusted(keys))[-2:]] == ["entry 5", "next"]


def test_a_full_disk_leaves_the_history_as_it_was(history, keys, monkeypatch):
    before = history.path.read_bytes()
    write = os.write

    def full(file, data):
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    monkeypatch.setattr(history_module.os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        append(history, keys)
    assert history.path.read_bytes() == before


def test_an_untrusted_key_cannot_write(history, keys):
    before = history.path.read_bytes()
    with pytest.raises(ConfigError, match="would not trust this key"):
        append(history, keys, "stranger")
    assert history.path.read_bytes() == before


def write_many(path, key, count, die_after):
    """Append entries, one by one; be killed while writing one of them."""
    key = load_signing_key(key)
    history, write = History(path), os.write

    def killed(file, data):
        write(file, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    for number in range(count):
        if number == die_after:
            os.write = killed
        with history.writing([key.public]) as writing:
            sequence = len(writing.log.entries)
            writing.append(key, str(os.getpid()), "rollback", channel="stable", reason=f"{sequence}", **NEW)


def test_writers_take_turns_and_one_killed_in_the_middle_leaves_no_trace(tmp_path):
    new_key(tmp_path / "key")
    path = tmp_path / "releases" / "history.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_many, args=(path, tmp_path / "key", 12, die)) for die in (None, 5, None, 9)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, -9, 0, -9]
    log = History(path).read([load_signing_key(tmp_path / "key").public])
    assert len(log.entries) == 12 + 5 + 12 + 9
    assert [entry.reason for entry in log.entries] == [str(number) for number in range(38)]  # decided under the lock
    counts = {str(writer.pid): sum(entry.who["name"] == str(writer.pid) for entry in log.entries) for writer in writers}
    assert sorted(counts.values()) == [5, 9, 12, 12]
