"""The page as a phone opens it: over https, from another machine, with the key in its address."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from omni_streaming.tls import self_signed, server_context
from page_driver import chromium, require_browser, scripted_server, write_microphone
from see_driver import ENTER

from omni.config import Config, ServerConfig
from omni.scripted import Script
from tests.streaming.serving import serving_on_a_thread

KEY = "open+sesame%41&x#y"
"""Every sign that a browser can send as a key and an address has another use for."""


def test_over_https_another_machine_gets_microphone_and_sound_and_its_key_is_taken(
    tmp_path: Path,
) -> None:
    require_browser()
    path = self_signed(tmp_path / "tls", ["omni.test"], datetime.now(UTC))
    config = dataclasses.replace(Config(), server=ServerConfig(api_key=KEY))
    flags = ("--host-resolver-rules=MAP omni.test 127.0.0.1", "--ignore-certificate-errors")
    with (
        serving_on_a_thread(scripted_server(Script(), config), server_context(path, path)) as url,
        chromium(tmp_path / "p", write_microphone(tmp_path / "q.wav", [60.0]), *flags) as page,
    ):
        page.open(f"{url.replace('127.0.0.1', 'omni.test')}/#key={quote(KEY, safe='')}")
        assert page.js("return window.isSecureContext") is True
        page.click("talk")
        page.wait(lambda p: p.phase == "listening")
        assert page.text("#key-dialog") == ""
        assert page.text("#notice-text") == ""
        assert "sesame" not in page.js("return location.href + document.body.innerHTML")
        assert not page.events("error")
        assert page.js("return watched.errors") == []
        page.click("other-page")  # which is not asked for the key again
        page.wait(lambda p: p.js("return location.pathname") == "/see.html")
        page.wait(lambda p: p.js("return document.readyState") == "complete")
        page.press(ENTER)
        page.wait(lambda p: p.phase == "listening")
        assert "sesame" not in page.js("return location.href + document.body.innerHTML")
