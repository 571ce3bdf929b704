import ast
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.digests import Digests, hash_json
from pipelines.patterns import matches
from pipelines.sources import Sources, parse

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8).filter(lambda name: name.isidentifier())
PROSE = st.text(string.ascii_letters + " .", max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def source(docstring: str, comment: str, gap: int, number: int) -> str:
    return (
        f'"""{docstring}"""\n# {comment}\n{chr(10) * gap}def double(x):\n    """{docstring}"""\n'
        f"    # {comment}\n    return x * {number}  # {comment}\n"
    )


def meaning(folder: Path, text: str) -> str:
    path = folder / "module.py"
    path.write_text(text)
    return str(parse(path)["meaning"])


@settings(max_examples=50, deadline=None)
@given(first=st.tuples(PROSE, PROSE, st.integers(0, 3)), second=st.tuples(PROSE, PROSE, st.integers(0, 3)))
def test_prose_and_layout_mean_nothing(
    tmp_path_factory: object, first: tuple[str, str, int], second: tuple[str, str, int]
) -> None:
    folder = tmp_path_factory.mktemp("keys")  # type: ignore[attr-defined]
    assert meaning(folder, source(*first, 2)) == meaning(folder, source(*second, 2))
    assert meaning(folder, source(*first, 2)) != meaning(folder, source(*first, 3))


@settings(max_examples=100, deadline=None)
@given(
    one=st.dictionaries(st.text(max_size=5), VALUES, max_size=4), other=st.dictionaries(st.text(), VALUES, max_size=4)
)
def test_keys_are_equal_exactly_where_ingredients_are(one: dict[str, object], other: dict[str, object]) -> None:
    shuffled = dict(reversed(list(one.items())))
    assert hash_json(one) == hash_json(shuffled)
    assert (hash_json(one) == hash_json(other)) == (repr_of(one) == repr_of(other))


def repr_of(value: object) -> str:
    """Equality that tells True from 1."""
    if isinstance(value, dict):
        return str(sorted((key, repr_of(each)) for key, each in value.items()))
    return str([repr_of(each) for each in value]) if isinstance(value, list) else repr(value)


@settings(max_examples=30, deadline=None)
@given(names=st.lists(NAMES, min_size=2, max_size=5, unique=True))
def test_the_closure_follows_every_import(tmp_path_factory: object, names: list[str]) -> None:
    """A chain of modules: each import form in turn leads on to the next."""
    root = tmp_path_factory.mktemp("closure")  # type: ignore[attr-defined]
    forms = ["import p.{}", "from p import {}", "from . import {}", "from .{} import x", "def f():\n    import p.{}"]
    (root / "p").mkdir()
    (root / "p" / "__init__.py").write_text("")
    names = [f"m_{name}" for name in names]
    for index, name in enumerate(names):
        text = forms[index % len(forms)].format(names[index + 1]) if index + 1 < len(names) else "import os, numpy"
        (root / "p" / f"{name}.py").write_text(text + "\n")
        ast.parse(text)
    found = Sources([root], Digests(root / "digests.json")).closure(f"p.{names[0]}")
    assert set(found) == {"p", *(f"p.{name}" for name in names)}


def test_a_literal_import_module_counts(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import importlib\nimportlib.import_module('b')\n")
    (tmp_path / "b.py").write_text("")
    assert set(Sources([tmp_path], Digests(tmp_path / "d")).closure("a")) == {"a", "b"}


FORMS = {
    "a package's __init__ above a folder without one": ("import p.space.m", {"p", "p.space.m"}),
    "a star and a literal __all__": ("from p.listed import *", {"p", "p.listed", "p.listed.m"}),
    "a star and a computed __all__": ("from p.computed import *", {"p", "p.computed", "p.computed.m", "p.computed.n"}),
    "a relative import_module": ("import importlib\nimportlib.import_module('.m', __package__)", {"p", "p.m"}),
    "in a named package": (
        "import importlib\nimportlib.import_module('.m', 'p.listed')",
        {"p", "p.listed", "p.listed.m"},
    ),
    "a keyword": ("import importlib\nimportlib.import_module(name='p.m')", {"p", "p.m"}),
    "another name for it": ("from importlib import import_module as load\nload('p.m')", {"p", "p.m"}),
    "__import__": ("__import__('p.m')", {"p", "p.m"}),
    "what a package of the same name hides": ("import q.m", {"q", "q.m"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_an_import_runs_counts(form: str, tmp_path: Path) -> None:
    text, expected = FORMS[form]
    one, two = tmp_path / "one", tmp_path / "two"
    files = {
        "p/a.py": text,
        "p/__init__.py": "",
        "p/m.py": "",
        "p/space/m.py": "",
        "p/listed/__init__.py": "__all__ = ['m']",
        "p/listed/m.py": "",
        "p/listed/n.py": "",
        "p/computed/__init__.py": "__all__ = []\n__all__ += ['m']",
        "p/computed/m.py": "",
        "p/computed/n.py": "",
        "q/m.py": "",
    }
    for name, source_text in files.items():
        path = one / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source_text)
    (two / "q").mkdir(parents=True)
    (two / "q/__init__.py").write_text("")
    (two / "q/m.py").write_text("")
    sources = Sources([one, two], Digests(tmp_path / "d"))
    found = sources.closure("p.a")
    assert set(found) == expected | {"p", "p.a"}
    assert sources.find("q.m") == two / "q/m.py"


PATTERNS = ["*", "*.txt", "**/*", "**/*.txt", "a/**/*.txt", "a/*/c.txt", "a/b/c.txt", "*/[bx].txt", "**", "none/*", "?"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_names_what_pathlib_says(pattern: str, tmp_path: Path) -> None:
    for name in ("x.txt", ".hidden.txt", "B.TXT", "a/x.txt", "a/b.txt", "a/b/c.txt", "a/b/.d/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert matches(tmp_path, pattern) == {path for path in tmp_path.glob(pattern) if path.is_file()}


def test_a_pattern_goes_through_links_to_folders_once(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name in ("base/sub/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    (base / "link").symlink_to(tmp_path / "elsewhere")
    (base / "sub" / "loop").symlink_to(base)
    assert matches(base, "**/*.txt") == {base / "sub/a.txt", base / "link/b.txt"}


def test_what_another_parser_found_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("import b\n")
    digests = Digests(tmp_path / "digests.json")
    Sources([tmp_path], digests).meaning(tmp_path / "a.py")
    monkeypatch.setattr("pipelines.sources.PARSER", 0)
    monkeypatch.setattr("pipelines.sources.parse", lambda path: {"meaning": "other"})
    assert Sources([tmp_path], digests).meaning(tmp_path / "a.py") == "other"
