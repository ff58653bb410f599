"""Where the backbone runs: what is wanted, what is there, and what is said if the two differ."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from omni.config import load
from omni.errors import ConfigError
from omni.models.device import Hardware, choose, look, resolve

NOTHING = Hardware(card=None, has_triton=False)
NO_TRITON = Hardware(card="Card", has_triton=False)
ALL = Hardware(card="Card", has_triton=True)


@pytest.mark.parametrize(
    ("wanted", "hardware", "device"),
    [
        ("auto", NOTHING, "cpu"),
        ("auto", NO_TRITON, "cpu"),
        ("auto", ALL, "cuda"),
        ("cpu", ALL, "cpu"),
        ("cuda", ALL, "cuda"),
    ],
)
def test_the_card_is_taken_where_it_can_be_used(
    wanted: str, hardware: Hardware, device: str
) -> None:
    assert resolve(wanted, hardware) == device


@pytest.mark.parametrize(
    ("hardware", "missing"),
    [(NOTHING, "no card that it can use"), (NO_TRITON, "no Triton beside it")],
)
def test_a_card_that_is_asked_for_and_not_there_is_one_sentence(
    hardware: Hardware, missing: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("cuda", hardware)
    assert str(caught.value) == (
        f'engine.device is "cuda", but PyTorch finds {missing}; set it to "auto" or "cpu"'
    )


def test_another_word_is_no_device() -> None:
    says = "engine.device is 'gpu', expected one of auto, cpu, cuda"
    with pytest.raises(ConfigError, match=says):
        load(None, {"engine.device": "gpu"})
    assert load(None, {"engine.device": "cuda"}).engine.device == "cuda"


def test_looking_finds_what_pytorch_and_python_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert look() == NOTHING
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises ImportError
    assert look() == NO_TRITON
    monkeypatch.setitem(sys.modules, "triton", sys)
    assert look() == ALL


def test_the_choice_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert choose("auto") == "cpu"
    assert caplog.messages == ["the backbone runs on the CPU (engine.device is auto)"]
