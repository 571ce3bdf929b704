"""Fixtures of the browser's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mobile.web import Opener, Site, Tab, chromium, sdk_or_skip, site_of


@pytest.fixture(scope="session")
def sdk() -> Path:
    return sdk_or_skip()


@pytest.fixture(scope="module")
def browser(sdk: Path) -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path, sdk: Path) -> Iterator[Site]:
    with site_of(tmp_path / "site", sdk) as served:
        yield served


@pytest.fixture
def opened(browser: Any, site: Site) -> Iterator[Opener]:
    """A new tab on the site, in storage of its own; `context` of an earlier tab's page shares that one's."""
    contexts = []

    def open_tab(context: Any = None, **options: Any) -> Tab:
        if context is None:
            context = browser.new_context(**options)
            contexts.append(context)
        return Tab(context.new_page(), site)

    yield open_tab
    for context in contexts:
        context.close()
