import os
import time
from pathlib import Path

import pytest

from pipelines.digests import Digests, hash_bytes
from pipelines.errors import StoreError
from pipelines.files import write_file
from pipelines.store import Store
from pipelines.tree import Tree, read_tree

CONTENTS = {"a.bin": b"alpha", "deep/b.bin": b"beta", "deep/er/c.txt": b"", "same.bin": b"alpha"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", tmp_path / "staging", Digests(tmp_path / "digests.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in CONTENTS.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


def stored(store: Store, folder: Path) -> Tree:
    tree = read_tree(folder, store.digests)
    store.put(folder, tree)
    return tree


def test_what_is_put_comes_back(store: Store, folder: Path, tmp_path: Path) -> None:
    tree = stored(store, folder)
    target = tmp_path / "out" / "folder"
    store.restore(tree, target)
    assert {name: (target / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert read_tree(target, Digests(tmp_path / "fresh")).digest == tree.digest
    assert not list(store.scratch.glob("*"))


def test_an_edit_in_the_workspace_does_not_reach_the_store(store: Store, folder: Path, tmp_path: Path) -> None:
    tree = stored(store, folder)
    target = tmp_path / "out"
    store.restore(tree, target)
    (target / "a.bin").write_bytes(b"ALPHA")
    (folder / "a.bin").write_bytes(b"OMEGA")
    assert store.object_path(tree.files["a.bin"].md5).read_bytes() == b"alpha"
    assert store.holds_tree(tree)


def test_a_flipped_byte_is_found_whatever_the_times_say(store: Store, folder: Path) -> None:
    tree = stored(store, folder)
    path = store.object_path(tree.files["deep/b.bin"].md5)
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"bet4")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o444)
    assert not store.holds_tree(tree)
    assert not path.exists()
    store.put(folder, tree)
    assert store.holds_tree(tree)


def test_all_damage_is_named(store: Store, folder: Path) -> None:
    tree = stored(store, folder)
    listing = store.object_path(tree.listing_digest.md5 + ".dir")
    listing.chmod(0o644)
    listing.write_bytes(b"[]")
    assert [path for path, _ in store.damaged()] == [listing]


def test_the_listing_is_dvcs(folder: Path, tmp_path: Path) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree as DvcTree

    tree = read_tree(folder, Digests(tmp_path / "digests.json"))
    theirs = DvcTree()
    for name, digest in tree.files.items():
        theirs.add(tuple(name.split("/")), None, HashInfo("md5", digest.md5))
    theirs.digest()
    assert tree.listing == theirs.as_bytes()
    assert tree.listing_digest.md5 + ".dir" == theirs.hash_info.value


def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_file(blocked / "under" / "a", b"")


def test_digests_are_remembered_only_while_a_file_stays_as_it_was(tmp_path: Path) -> None:
    path, memory = tmp_path / "a", tmp_path / "digests.json"
    path.write_bytes(b"one")
    time.sleep(0.05)
    digests = Digests(memory)
    assert digests.of(path) == hash_bytes(b"one")
    digests.save()
    again = Digests(memory)
    assert list(again.known) == [f"digest:{path}"]
    path.write_bytes(b"two")
    assert again.of(path) == hash_bytes(b"two")


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    """It may change again within one tick of the file system's clock."""
    path, memory = tmp_path / "a", tmp_path / "digests.json"
    digests = Digests(memory)
    path.write_bytes(b"one")
    digests.of(path)
    time.sleep(0.05)
    digests.save()
    assert Digests(memory).known == {}
