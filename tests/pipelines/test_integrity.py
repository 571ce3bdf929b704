"""A flipped bit in anything that Tapeout or DVC keeps is found and put right; it is never used."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.digests import Digests
from tests.pipelines.toy import Toy, add_dvc, make_toy

KINDS = {
    "object": ".dvc/cache/files/md5/??/*[!r]",
    "directory list": ".dvc/cache/files/md5/??/*.dir",
    "ledger": ".tapeout/ledger/??/*.json",
    "index": ".tapeout/digests.json",
    "what was recorded": ".tapeout/recorded.json",
    "summary": ".tapeout/last.json",
    "configuration": ".tapeout/configurations/*.json",
    "lock": ".tapeout/lock",
    "dvc.lock": "dvc.lock",
    "dvc.yaml": "dvc.yaml",
    "params.yaml": "params.yaml",
    "artifact": "artifacts/build/*/**/*",
    "bundle": "artifacts/*[!d]/**/*",
    "record": "artifacts/build/*.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """What the tests here flip bits in, and leave as they found it."""
    toy = make_toy(tmp_path_factory.mktemp("integrity") / "toy")
    add_dvc(toy)
    for _ in range(2):  # the second time, all of the index has settled
        assert toy.build().status == 0
        time.sleep(0.05)
    return toy


def places(toy: Toy, kind: str) -> list[Path]:
    found = sorted(path for path in toy.root.glob(KINDS[kind]) if path.is_file())
    assert found, kind
    return found


def state(toy: Toy) -> dict[str, bytes]:
    """All that has to be the same after any damage."""
    kinds = [kind for kind in KINDS if kind not in ("index", "summary", "lock")]
    return {str(path): path.read_bytes() for kind in kinds for path in places(toy, kind)}


def flip(path: Path, chance: random.Random, keep_times: bool = False) -> None:
    """Flip one bit, in place; of an empty file, which the lock is, make one byte."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    with open(path, "r+b") as file:
        file.write(data or b"x")
    path.chmod(before.st_mode & 0o777)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flips_are_put_right(toy: Toy, seeds: range) -> None:
    expected = state(toy)
    for seed in seeds:
        chance = random.Random(seed)
        kind = chance.choice(list(KINDS))
        path = chance.choice(places(toy, kind))
        flip(path, chance, keep_times=seed % 2 == 0)
        result = toy.build()
        assert result.status == 0, (seed, path, result.err)
        assert state(toy) == expected, (seed, path)
        assert toy.run("report").status == 0


def test_flipped_bits_are_found_by_the_next_build(whole: Toy) -> None:
    flips_are_put_right(whole, range(25))


@pytest.mark.slow
def test_none_of_200_flipped_bits_passes(whole: Toy) -> None:
    flips_are_put_right(whole, range(100, 300))
    assert whole.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lock"])
def test_verify_names_what_is_damaged_and_the_next_build_puts_it_right(kind: str, whole: Toy) -> None:
    expected, chance = state(whole), random.Random(kind)
    path = chance.choice(places(whole, kind))
    flip(path, chance, keep_times=True)
    result = whole.run("verify")
    assert result.status == 1
    name = path.relative_to(whole.root).as_posix()
    assert [line for line in result.out.splitlines() if line.startswith(f"{name}: ") and "'tapeout build'" in line]
    assert set(whole.build().nodes.values()) == {"cached"}
    assert state(whole) == expected
    assert whole.run("verify").out.strip() == "nothing is damaged"


@pytest.mark.parametrize("kind", ["object", "directory list", "artifact", "bundle"])
def test_verify_finds_what_not_even_stat_shows(kind: str, whole: Toy) -> None:
    """Damage under the file system: the index holds the file's new stat with its old digest."""
    expected, chance = state(whole), random.Random(kind)
    path = chance.choice(places(whole, kind))
    digests = Digests(whole.root / ".tapeout/digests.json")
    good = digests.of(path)
    flip(path, chance)
    digests.learn(path, good)
    time.sleep(0.05)
    digests.save()
    assert path.relative_to(whole.root).as_posix() in whole.run("verify").out
    assert set(whole.build().nodes.values()) == {"cached"}
    assert state(whole) == expected
    assert whole.run("verify").out.strip() == "nothing is damaged"


def test_only_what_is_damaged_is_made_again(whole: Toy, tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy")
    shutil.copytree(whole.root, toy.root)
    expected = state(toy)
    damaged = [path for path in places(toy, "object") if path.read_bytes() == b"0.25 0.5 in 4/32"]
    assert len(damaged) == 1
    flip(damaged[0], random.Random(0))
    shutil.rmtree(toy.root / "artifacts/build/quantize")
    out = toy.run("verify").out
    assert f"{damaged[0].relative_to(toy.root)}: its md5 is" in out
    assert "artifacts/build/quantize/codes.txt: missing" in out
    result = toy.build()
    assert {name for name, status in result.nodes.items() if status == "built"} == {"quantize"}
    assert {name.replace(str(toy.root), ""): data for name, data in state(toy).items()} == {
        name.replace(str(toy.root), ""): data for name, data in expected.items()
    }
    assert toy.run("verify").out.strip() == "nothing is damaged"
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


def test_an_intact_object_is_not_blamed_for_its_entry_in_the_index(whole: Toy) -> None:
    path = places(whole, "object")[0]
    digests = Digests(whole.root / ".tapeout/digests.json")
    digests.learn(path, digests.of(places(whole, "object")[1]))
    digests.save()
    assert whole.run("verify").out.strip() == "nothing is damaged"
    assert set(whole.build().nodes.values()) == {"cached"}


def test_dvcs_own_object_is_named_and_left(whole: Toy) -> None:
    other = whole.root / ".dvc/cache/files/md5/ab" / ("0" * 30)
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"somebody's data")
    result = whole.run("verify")
    assert result.status == 1
    assert "it is DVC's or an old one" in result.out
    assert other.read_bytes() == b"somebody's data"
    other.unlink()
    assert whole.run("verify").out.strip() == "nothing is damaged"


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "another file's": lambda data: b"{}",
    "longer": lambda data: data + b" ",
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("kind", ["object", "directory list", "ledger", "index", "what was recorded", "record"])
def test_what_is_cut_or_grown_is_found_too(kind: str, case: str, whole: Toy) -> None:
    expected = state(whole)
    path = places(whole, kind)[-1]
    data, mode = path.read_bytes(), path.stat().st_mode & 0o777
    path.chmod(0o644)
    path.write_bytes(BROKEN[case](data))
    path.chmod(mode)
    assert whole.build().status == 0
    assert state(whole) == expected
