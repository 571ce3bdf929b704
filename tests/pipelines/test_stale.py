"""A result belongs to the code and the inputs that its key tells of, whatever is edited and when."""

import os
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy

WORDS = ("pipeline=pair",)
IMPORT = "from toystages.folder import Folder"


def use_module(toy: Toy, module: str = "toystages.h", value: str = "{h.VALUE}") -> None:
    """Let `quantize` write what another module holds."""
    toy.edit("toystages/quantize.py", IMPORT, f"{IMPORT}\nimport {module} as h")
    toy.edit("toystages/quantize.py", "{config.bits}", value)


def codes(toy: Toy) -> str:
    return toy.files()["build/quantize/codes.txt"].decode()


def test_an_edit_that_leaves_size_and_time_is_run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself would take the older source's .pyc."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    use_module(toy)
    for value in (1, 2):
        toy.write("toystages/h.py", f"VALUE = {value}\n")
        os.utime(toy.root / "toystages/h.py", (1_700_000_000, 1_700_000_000))
        assert toy.build(*WORDS).nodes["quantize"] == "built"
        assert codes(toy) == f"0.25 0.5 in {value}/32"


def test_code_that_is_edited_and_put_back_while_a_node_runs_fails_it(toy: Toy) -> None:
    toy.write("toystages/h.py", "VALUE = 1\n")
    swap = (
        "    path = work.out.parents[2] / 'toystages/h.py'\n    path.write_text('VALUE = 2')\n"
        "    from toystages import h\n    path.write_text('VALUE = 1\\n')\n"
    )
    toy.edit("toystages/quantize.py", "    for step", f"{swap}    for step")
    result = toy.build(*WORDS)
    assert result.nodes["quantize"] == "failed"
    assert "quantize: changed while it ran: toystages.h\n" in result.err


def test_a_worker_does_not_keep_what_is_not_on_the_disk(toy: Toy) -> None:
    toy.write("toystages/h.py", "VALUE = 1\n")
    use_module(toy)
    swap = (
        "    import importlib\n    path = work.out.parents[2] / 'toystages/h.py'\n    path.write_text('VALUE = 2')\n"
        "    importlib.import_module('.'.join(['toystages', 'h']))\n    path.write_text('VALUE = 1\\n')\n"
    )
    toy.edit("toystages/load.py", "    work.log", f"{swap}    work.log")
    assert toy.build(*WORDS).nodes == {"load": "built", "quantize": "built"}
    assert codes(toy) == "0.25 0.5 in 1/32"


def test_a_worker_returns_to_its_start_before_each_task(toy: Toy) -> None:
    state = "os.getcwd(), os.environ.get('LEFT'), os.umask(0o022), '/left' in sys.path"
    leave = "    os.chdir('/'); os.environ['LEFT'] = 'x'; os.umask(0o077); sys.path.append('/left')\n"
    toy.edit("toystages/load.py", "    work.log", f"    import os, sys\n{leave}    work.log")
    toy.edit("toystages/quantize.py", IMPORT, f"{IMPORT}\nimport os, sys")
    toy.edit("toystages/quantize.py", "{config.bits}/{config.group_size}", f"{{({state})}}")
    umask = os.umask(0o022)
    os.umask(umask)
    assert toy.build(*WORDS).status == 0
    assert codes(toy) == f"0.25 0.5 in {(str(toy.root), None, umask, False)}"


CHANGES = {
    "a file that it reads is removed": ("(root / 'notes/a.txt').unlink()", "notes/a.txt"),
    "a module is hidden by another": ("(root / 'toyh').mkdir(); (root / 'toyh/__init__.py').write_text('')", "toyh"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_comes_or_goes_while_a_node_runs_fails_it(case: str, toy: Toy) -> None:
    code, said = CHANGES[case]
    toy.write("notes/a.txt", "a")
    toy.write("toyh.py", "VALUE = 1\n")
    toy.edit("conf/pipeline/pair.yaml", "needs: {checkpoint: load}", "needs: {checkpoint: load}, reads: [notes/*.txt]")
    use_module(toy, "toyh")
    toy.edit("toystages/quantize.py", "    for step", f"    root = work.out.parents[2]\n    {code}\n    for step")
    result = toy.build(*WORDS)
    assert result.nodes == {"load": "built", "quantize": "failed"}
    assert f"quantize: changed while it ran: {said}\n" in result.err


def test_what_lies_behind_a_link_to_a_folder_counts(toy: Toy, tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "weights.txt").write_text("1")
    (toy.root / "data/model/shard").symlink_to(far)
    toy.edit("conf/pipeline/pair.yaml", '{path: ["*.txt"]}', "{path: folder}, reads: ['data/**/*.txt']")
    toy.edit("toystages/load.py", '"weights.txt").read', '"shard/weights.txt").read')
    toy.build(*WORDS)
    (far / "weights.txt").write_text("22")
    why = toy.build(*WORDS).why["load"]
    assert "model.path: data/model changed" in why
    assert toy.files()["build/load/weights.txt"] == b"22"


def test_what_a_schema_computes_counts(toy: Toy) -> None:
    """The worker makes the stage's `config` of it."""
    old = "    group_size: int\n"
    toy.edit("toystages/schema.py", old, f"{old}\n    @property\n    def levels(self):\n        return 2**self.bits\n")
    toy.edit("toystages/quantize.py", "{config.bits}", "{config.levels}")
    toy.build(*WORDS)
    toy.edit("toystages/schema.py", "2**self.bits", "2**self.bits - 1")
    assert toy.build(*WORDS).why["quantize"] == "toystages/schema.py changed"
    assert codes(toy) == "0.25 0.5 in 15/32"
