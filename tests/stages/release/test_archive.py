"""Archives: the same bytes from anywhere, and nothing out of them but what the manifest lists."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, StoreError, TapeoutError, UnwritableError, VerificationError
from stages.release.bundles import archive
from stages.release.bundles.archive import open_archive, pack, unpack
from stages.release.bundles.contents import check_contents
from stages.release.manifest import NAME, sha256_of
from tests.stages.release.archives import edited, entries, file, joined, special, tarred
from tests.stages.release.bundles import make_bundle

GIB10 = 10 << 30
FILES = {"graphs/deep/main.bin": b"12345", f"{'long' * 22}/{'name' * 24}": b"", "été": b"1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "pixel-8"
    make_bundle(path, files=FILES)
    return path


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    pack(folder, folder.with_name("pixel-8.tar"))
    return folder.with_name("pixel-8.tar")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_from_anywhere(folder: Path, packed: Path, tmp_path: Path) -> None:
    """Another folder, order of writing, time, modes, umask."""
    other = tmp_path / "elsewhere" / "named otherwise"
    for name in sorted(contents(folder), reverse=True):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((folder / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o400)
    before = os.umask(0o077)
    try:
        digest = pack(other, tmp_path / "other.tar")
    finally:
        os.umask(before)
    assert (tmp_path / "other.tar").read_bytes() == packed.read_bytes() and digest == sha256_of(packed)


def test_it_is_what_other_programs_read(folder: Path, packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed, "r:") as tar:
        members = tar.getmembers()
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    names = [each.name for each in members]
    assert names[0] == NAME and names[1:] == sorted(names[1:]) and contents(tmp_path) == contents(folder)
    assert {(each.mode, each.uid, each.gid, each.uname, each.gname, each.mtime) for each in members} == {
        (0o644, 0, 0, "", "", 0)
    }
    own = [block[:148] + block[156:329] for block, _ in entries(packed)]  # Python leaves the device's fields empty
    assert own == [
        (each.tobuf(tarfile.USTAR_FORMAT)[:148] + each.tobuf(tarfile.USTAR_FORMAT)[156:329]) for each in members
    ]


def test_unpacked_it_is_the_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    manifest = unpack(packed, tmp_path / "new" / "pixel-8")
    assert contents(tmp_path / "new" / "pixel-8") == contents(folder)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["pixel-8"]
    assert manifest.files and (tmp_path / "new/pixel-8/graphs/deep").stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_a_target_that_exists_is_left_alone(taken: str, packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    {"file": target.touch, "folder": target.mkdir, "link": lambda: target.symlink_to("nowhere")}[taken]()
    with pytest.raises(ConfigError, match="target exists already"):
        unpack(packed, target)
    assert [*tmp_path.iterdir()] == [target] and not [*target.glob("*")]


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda path: flip(path / "decoder.onnx.data"), "decoder.onnx.data: its sha256 is"),
    "a longer file": (lambda path: (path / "tokenizer.json").write_bytes(b"x" * 99), "it has at least 14 bytes"),
    "a shorter file": (lambda path: (path / "tokenizer.json").write_bytes(b"x"), "it has 1 bytes, and the manifest"),
    "a file less": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "a file more": (lambda path: (path / "more").touch(), "more: not in the manifest"),
    "a link": (lambda path: (path / "link").symlink_to("tokenizer.json"), "link: a symbolic link"),
    "a FIFO": (lambda path: os.mkfifo(path / "pipe"), "pipe: a device, a FIFO or a socket"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_only_a_whole_bundle_is_packed(case: str, folder: Path, tmp_path: Path) -> None:
    spoil, said = SPOILT[case]
    shutil.copytree(folder, tmp_path / "bundle")
    spoil(tmp_path / "bundle")
    with pytest.raises(VerificationError) as found:
        pack(tmp_path / "bundle", tmp_path / "bundle.tar")
    assert said in found.value.message and [*tmp_path.iterdir()] == [tmp_path / "bundle"]


@pytest.mark.parametrize("name", ["x" * 101, "x" * 156 + "/y", "x/" + "y" * 101, "é" * 51])
def test_what_the_format_cannot_hold(name: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", files={name: b""})
    with pytest.raises(ConfigError, match="too long for an archive"):
        pack(tmp_path / "bundle", tmp_path / "bundle.tar")
    assert not (tmp_path / "bundle.tar").exists()


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


# Attacks: (what becomes of a good archive's bytes, what is said of it). `parts` are its entries, the manifest's first.
Parts = list[tuple[bytes, bytes]]
HUGE = b"\x80" + GIB10.to_bytes(11, "big")  # as GNU tar writes a size


def with_first(parts: Parts, place: int, field: bytes) -> bytes:
    """The archive with another field in the header of its first file after the manifest."""
    return joined([*parts[:2], (edited(parts[2][0], place, field), parts[2][1]), *parts[3:]])


ENTRIES: dict[str, tuple[Callable[[Parts], bytes], str]] = {
    "a path upwards": (lambda parts: joined([*parts[:2], file("../evil", b"x"), *parts[2:]]), "'../evil' leads out"),
    "a path upwards within": (lambda parts: joined([*parts[:2], file("a/../../evil", b"x")]), "leads out"),
    "an absolute path": (lambda parts: joined([*parts[:2], file("/tmp/evil", b"x")]), "'/tmp/evil' is an absolute"),
    "a path of a drive": (lambda parts: joined([*parts[:2], file("C:\\evil", b"x")]), "is no plain path"),
    "a name with a control": (lambda parts: joined([*parts[:2], file("a\x1b[2J", b"x")]), "'a\\x1b[2J' is no plain"),
    "a name that is no text": (
        lambda parts: with_first(parts, 0, b"\xff\xfe\0"),
        "is no plain path",
    ),
    "a symbolic link": (
        lambda parts: joined([*parts[:2], special("decoder.onnx", b"2", "/etc/passwd")]),
        "'decoder.onnx' is a symbolic link",
    ),
    "a hard link": (lambda parts: joined([*parts[:2], special("decoder.onnx", b"1", NAME)]), "is a hard link"),
    "a device of characters": (lambda parts: joined([*parts[:2], special("decoder.onnx", b"3")]), "is a device"),
    "a device of blocks": (lambda parts: joined([*parts[:2], special("decoder.onnx", b"4")]), "is a device"),
    "a folder's entry": (lambda parts: joined([*parts[:2], special("graphs", b"5")]), "'graphs/' is a folder's entry"),
    "a FIFO": (lambda parts: joined([*parts[:2], special("decoder.onnx", b"6")]), "is a FIFO"),
    "an unknown type": (lambda parts: joined([*parts[:2], special("decoder.onnx", b"Z")]), "the unknown type b'Z'"),
    "a file of an old type": (
        lambda parts: with_first(parts, 156, b"\0"),
        "format is not that of an archive of Tapeout's",
    ),
    "a file twice": (lambda parts: joined([*parts[:2], parts[1], *parts[2:]]), "'MODEL_CARD.md' stands in it twice"),
    "a file twice at the end": (lambda parts: joined([*parts, parts[-1]]), "'été' stands in it twice"),
    "the manifest twice": (lambda parts: joined([parts[0], *parts]), "'manifest.json' stands in it twice"),
    "a file that is not listed": (
        lambda parts: joined([*parts[:2], file("evil", b"x"), *parts[2:]]),
        "'evil' is not in the manifest",
    ),
    "a file that is not listed, at the end": (
        lambda parts: joined([*parts, file("zzz", b"x")]),
        "'zzz' is not in the manifest",
    ),
    "a file less": (lambda parts: joined([*parts[:2], *parts[3:]]), "'decoder.onnx' is missing, or not in its place"),
    "the last file less": (lambda parts: joined(parts[:-1]), "'été' is missing"),
    "another order": (lambda parts: joined([*parts[:2], parts[3], parts[2], *parts[4:]]), "not in its place"),
    "no manifest": (lambda parts: joined(parts[1:]), "its first file is 'MODEL_CARD.md', expected 'manifest.json'"),
    "the manifest last": (lambda parts: joined([*parts[1:], parts[0]]), "its first file is 'MODEL_CARD.md'"),
    "no end": (lambda parts: joined(parts, end=b""), "it is truncated"),
    "half an end": (lambda parts: joined(parts, end=bytes(512)), "it is truncated"),
    "cut in a file": (lambda parts: joined(parts)[:-60_000], "it is truncated"),
    "cut in a header": (lambda parts: joined(parts[:2])[:-1400], "it is truncated"),
    "cut in the manifest": (lambda parts: joined(parts)[:900], "it is truncated within its manifest"),
    "something at the end": (lambda parts: joined(parts) + b"x", "1 bytes of something else follow its end"),
    "zeros at the end": (lambda parts: joined(parts) + bytes(10_240), "10240 bytes of something else follow its end"),
    "an archive at the end": (lambda parts: joined(parts) + joined(parts), "of something else follow its end"),
    "something instead of an end": (lambda parts: joined(parts, end=b"x" * 1024), "something else follows the"),
    "another size": (
        lambda parts: joined([*parts[:2], (edited(parts[2][0], 124, b"%011o\0" % 5), b"x" * 512), *parts[3:]]),
        "'decoder.onnx' is said to have 5 bytes, and the manifest says 20",
    ),
    "a size of 8 GiB": (
        lambda parts: with_first(parts, 124, b"77777777777\0"),
        "'decoder.onnx' is said to have 8589934591 bytes",
    ),
    "a size of 10 GiB": (
        lambda parts: with_first(parts, 124, HUGE),
        f"'decoder.onnx' is said to have {GIB10} bytes, and the manifest says 20",
    ),
    "a size that is no number": (
        lambda parts: with_first(parts, 124, b"99999999999\0"),
        "a damaged header where 'decoder.onnx' is expected",
    ),
    "a manifest of 10 GiB": (
        lambda parts: joined([(edited(parts[0][0], 124, HUGE), parts[0][1])]),
        f"its first file is said to have {GIB10} bytes; a manifest has at most 4194304",
    ),
    "a mode": (
        lambda parts: with_first(parts, 100, b"0004755\0"),
        "'decoder.onnx': its mode, owner, time or format",
    ),
    "a time": (lambda parts: with_first(parts, 136, b"00000000001\0"), "its mode, owner, time"),
    "a wrong sum": (
        lambda parts: joined([*parts[:2], (parts[2][0][:500] + b"x" * 12, parts[2][1])]),
        "a damaged header where 'decoder.onnx' is expected",
    ),
    "a pax header": (
        lambda parts: joined([*parts[:2], special("decoder.onnx", b"x"), *parts[2:]]),
        "'decoder.onnx' is a pax header",
    ),
    "a global pax header": (lambda parts: joined([special("pax", b"g"), *parts]), "'pax' is a pax header"),
    "a sparse file": (
        lambda parts: joined([*parts[:2], special("decoder.onnx", b"S", form=tarfile.GNU_FORMAT)]),
        "is a sparse file of GNU tar's",
    ),
    "a long name of GNU tar's": (
        lambda parts: joined([*parts[:2], special("././@LongLink", b"L", form=tarfile.GNU_FORMAT)]),
        "is a long name of GNU tar's",
    ),
    "hidden behind a file": (
        lambda parts: joined([*parts[:2], (parts[2][0], parts[2][1][:-1] + b"x"), *parts[3:]]),
        "decoder.onnx: something is hidden behind its end",
    ),
    "hidden behind the manifest": (
        lambda parts: joined([(parts[0][0], parts[0][1][:-1] + b"x"), *parts[1:]]),
        "something is hidden behind its manifest's end",
    ),
    "no archive": (lambda parts: b"\x7fELF" + bytes(9000), "no tar header where 'manifest.json' is expected"),
    "text": (lambda parts: b"hello\n", "6 bytes are no tar archive"),
    "nothing": (lambda parts: b"", "0 bytes are no tar archive"),
    "zeros": (lambda parts: bytes(10_240), "it is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENTRIES)
def test_an_attack_is_refused_and_leaves_nothing(case: str, packed: Path, tmp_path: Path) -> None:
    make, said = ENTRIES[case]
    evil = tmp_path / "evil.tar"
    evil.write_bytes(make(entries(packed)))
    refused(evil, said, tmp_path)


def refused(evil: Path, said: str, tmp_path: Path) -> None:
    """Neither verified nor unpacked, and nothing is written anywhere."""
    for attempt in (lambda: hashed(evil), lambda: unpack(evil, tmp_path / "target" / "bundle")):
        with pytest.raises(VerificationError) as found:
            attempt()
        assert said in found.value.message and found.value.hint, found.value
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left <= {"evil.tar", "target"} and not Path("/tmp/evil").exists()


def hashed(path: Path) -> None:
    with open_archive(path) as opened:
        check_contents(opened)


def test_the_entries_of_the_table_are_those_of_a_good_archive(packed: Path) -> None:
    assert joined(entries(packed)) == packed.read_bytes()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (tarfile.GNU_FORMAT, "'manifest.json': its mode, owner, time or format"),
        (tarfile.PAX_FORMAT, "'././@PaxHeader' is a pax header"),
        (tarfile.USTAR_FORMAT, "'manifest.json': its mode, owner, time or format"),
    ],
)
def test_what_another_program_has_packed_is_not_taken(form: int, said: str, folder: Path, tmp_path: Path) -> None:
    """It may hold the same files; but other programs might read others out of it."""
    (tmp_path / "evil.tar").write_bytes(tarred(folder, form))
    refused(tmp_path / "evil.tar", said, tmp_path)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_a_compressed_archive_is_no_plain_one(kind: str, packed: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar"
    if kind == "zip":
        with zipfile.ZipFile(evil, "w") as zipped:
            zipped.write(packed)
    elif kind == "zst":
        import zstandard

        evil.write_bytes(zstandard.compress(packed.read_bytes()))
    else:
        import bz2
        import gzip
        import lzma

        evil.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(packed.read_bytes()))
    refused(evil, "and so not a plain archive", tmp_path)


@pytest.mark.parametrize("where", ["after its end", "in its first file", "in one that is not listed"])
def test_a_bomb_of_10_gib_costs_nothing(where: str, packed: Path, tmp_path: Path) -> None:
    """A file of 10 GiB, of which the disk holds some blocks: no byte of it is read beyond what the manifest lists."""
    evil, parts = tmp_path / "evil.tar", entries(packed)
    starts = {
        "after its end": packed.read_bytes(),
        "in its first file": edited(parts[0][0], 124, HUGE),
        "in one that is not listed": joined(parts, end=edited(file("zzz", b"")[0], 124, b"77777777777\0")),
    }
    with evil.open("wb") as out:
        out.write(starts[where])
        out.truncate(GIB10)
    tracemalloc.start()
    began, free = time.process_time(), shutil.disk_usage(tmp_path).free
    for attempt in (lambda: hashed(evil), lambda: unpack(evil, tmp_path / "bundle")):
        with pytest.raises(VerificationError, match=r"bytes of something else|said to have|not in the manifest"):
            attempt()
    assert time.process_time() - began < 0.5 and tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert free - shutil.disk_usage(tmp_path).free < 1 << 30 and not (tmp_path / "bundle").exists()


def test_what_is_neither_folder_nor_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "neither a bundle's folder nor its archive"), ("absent", "No such file")):
        with pytest.raises(ConfigError, match=said):
            hashed(tmp_path / name)


def test_a_disk_without_room_is_noticed_before_a_byte_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UnwritableError, match="No space left") as found:
        unpack(packed, tmp_path / "bundle")
    assert "free some disk space" in found.value.hint and not [*tmp_path.iterdir()]


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    """The kernel refuses files of more than 20,000 bytes, in the middle of one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StoreError, match=f"bundle cannot be written: {os.strerror(errno.EFBIG)}"):
            unpack(packed, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_at_the_target(tmp_path: Path) -> None:
    make_bundle(tmp_path / "pixel-8", weights=200 << 20)
    pack(tmp_path / "pixel-8", tmp_path / "pixel-8.tar")
    whole = contents(tmp_path / "pixel-8")
    words = "import sys; from pathlib import Path; from stages.release.bundles.archive import unpack; print(flush=True)"
    ended = set()
    for number in range(12):
        target = tmp_path / f"target-{number}"
        code = f"{words}; unpack(Path({str(tmp_path / 'pixel-8.tar')!r}), Path({str(target)!r}))"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(number * 0.08)
            process.kill()
        ended.add(target.exists())
        assert not target.exists() or contents(target) == whole
        for left in tmp_path.glob(".target*"):
            shutil.rmtree(left)
    assert False in ended


def test_errors_are_tapeouts(packed: Path) -> None:
    """A flipped bit anywhere is refused, unless it lies in the manifest: that takes a signature."""
    data, parts = packed.read_bytes(), entries(packed)
    manifest = range(512, 512 + len(parts[0][1]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "evil.tar")
        for place in [*range(0, len(data), 397), *range(len(data) - 1100, len(data), 91)]:
            if place in manifest:
                continue
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(TapeoutError):
                hashed(path)
