"""What the tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_driver import Page, chromium, require_browser, scripted_server, serving

from omni.scripted import Script


@pytest.fixture(scope="module")
def typing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    """A browser without any microphone, and a server that repeats what was said."""
    require_browser()
    with (
        serving(scripted_server(Script())) as url,
        chromium(tmp_path_factory.mktemp("profile")) as page,
    ):
        yield page, url
