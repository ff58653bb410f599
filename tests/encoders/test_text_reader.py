"""The text reader: real print and signs, reading order, lines that are cut off, cancelling."""

from __future__ import annotations

import socket

import cv2
import numpy as np
import pytest
from omni_encoders.text_reader import MAX_PROPORTION, TextReader, filled_up, in_reading_order
from omni_encoders.wording import reading
from photos import Pixels, photo

from omni.errors import CancelledError
from omni.scene import Lettering

PAGE = [
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
]


@pytest.fixture(scope="module")
def reader() -> TextReader:
    return TextReader()


def sign(*lines: str, light: float = 1.0) -> Pixels:
    pixels = np.full((60 * len(lines) + 60, 700, 3), 235, dtype=np.uint8)
    for number, line in enumerate(lines):
        at = (60, 70 + 60 * number)
        cv2.putText(pixels, line, at, cv2.FONT_HERSHEY_SIMPLEX, 1.2, (20, 20, 20), 3)
    return (pixels * light).astype(np.uint8)


def texts(lines: tuple[Lettering, ...]) -> list[str]:
    return [line.text for line in lines]


def test_a_page_in_bad_light_is_read_line_by_line(reader: TextReader) -> None:
    lines = reader.read(photo("page"))
    assert texts(lines)[:6] == PAGE
    assert not any(line.is_cut_off for line in lines[:6])
    assert lines[6].is_cut_off  # the lower edge of the photo runs through it
    assert all(line.confidence > 0.9 for line in lines)


@pytest.mark.parametrize("light", [1.0, 0.3, 0.12])
def test_a_sign_is_read_in_any_light(reader: TextReader, light: float) -> None:
    lines = reader.read(sign("Platform 4", "Trains to London", "EXIT", light=light))
    assert texts(lines) == ["Platform 4", "Trains to London", "EXIT"]
    assert not any(line.is_cut_off for line in lines)


def test_a_garbled_line_is_said_to_be_doubtful_and_a_sharp_one_is_not(reader: TextReader) -> None:
    pixels = sign("Platform 4", "Departures to London", "Keep left on the stairs")
    far = pixels[165:]
    small = cv2.resize(far, None, fx=1 / 6, fy=1 / 6, interpolation=cv2.INTER_AREA)
    pixels[165:] = cv2.resize(small, far.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    *sharp, garbled = reader.read(pixels)
    assert garbled.text != "Keep left on the stairs"  # "Keap left an the stairs"
    assert reading([*sharp, garbled]) == (
        f"It says: Platform 4, Departures to London. Not sure, perhaps: {garbled.text}."
    )


def test_boxes_are_where_the_lines_are(reader: TextReader) -> None:
    (line,) = reader.read(sign("Departures"))
    left, top, right, bottom = line.box
    assert left * 700 == pytest.approx(60, abs=25)
    assert top * 120 < 45 < 70 < bottom * 120 + 5
    assert right < 0.6


def test_a_line_that_runs_out_of_the_picture_says_so(reader: TextReader) -> None:
    whole = sign("Do not enter without a ticket", "EXIT")
    first, second = reader.read(whole[:, :450])
    assert first.text.startswith("Do not enter")
    assert (first.is_cut_off, second.is_cut_off) == (True, False)
    assert reader.read(np.ascontiguousarray(whole[:, 100:]))[0].is_cut_off


@pytest.mark.parametrize("name", ["coffee", "chelsea", "brick"])
def test_nothing_is_read_where_nothing_is_written(reader: TextReader, name: str) -> None:
    assert reader.read(photo(name)) == ()


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package downloads weights that it misses: here it never does, from its first start."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert texts(TextReader().read(sign("EXIT"))) == ["EXIT"]


def test_a_blank_or_tiny_picture_has_no_text(reader: TextReader) -> None:
    for shape in ((480, 640), (10, 10), (10, 1500)):
        assert reader.read(np.zeros((*shape, 3), dtype=np.uint8)) == ()


@pytest.mark.parametrize("shape", [(10, 3000), (3000, 10), (1, 640), (200, 1600), (99, 801)])
def test_a_strip_is_never_enlarged_beyond_measure(shape: tuple[int, int]) -> None:
    strip = np.full((*shape, 3), 90, np.uint8)
    filled = filled_up(strip)
    assert max(filled.shape[:2]) == max(shape)
    assert min(filled.shape[:2]) >= max(shape) / MAX_PROPORTION
    assert (filled == 90).all()


def test_a_strip_with_a_line_on_it_is_read(reader: TextReader) -> None:
    strip = np.full((60, 1400, 3), 255, np.uint8)
    cv2.putText(strip, "PLATFORM NINE", (20, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3)
    (found,) = reader.read(strip)
    assert found.text.replace(" ", "") == "PLATFORMNINE"
    assert not found.is_cut_off
    assert found.box[2] < 0.5


def test_reading_stops_between_lines(reader: TextReader) -> None:
    asked: list[int] = []
    with pytest.raises(CancelledError):
        reader.read(photo("page"), should_stop=lambda: asked.append(1) or len(asked) > 4)
    assert len(asked) == 5  # once before all, then before each line


def line(text: str, left: float, top: float, width: float = 0.3, height: float = 0.05) -> Lettering:
    return Lettering(text=text, confidence=1.0, box=(left, top, left + width, top + height))


def test_columns_of_prose_are_read_one_after_the_other() -> None:
    lines = [
        line("1 a headline over all", 0.05, 0.02, width=0.8),
        line("2 the left column", 0.05, 0.2),
        line("4 the right column", 0.55, 0.19),
        line("3 and its end here", 0.05, 0.3),
        line("5 and its end there", 0.55, 0.31),
        line("6 a footnote below them", 0.05, 0.8, width=0.8),
    ]
    assert "".join(text[0] for text in texts(in_reading_order(lines[::-1]))) == "123456"


def test_a_menu_is_read_with_its_prices() -> None:
    lines = [
        line("Coffee with milk", 0.05, 0.2),
        line("3.50", 0.7, 0.21, width=0.1),
        line("Tea from Ceylon", 0.05, 0.3),
        line("2.80", 0.7, 0.29, width=0.1),
    ]
    assert texts(in_reading_order(lines[::-1])) == [each.text for each in lines]


def test_words_of_a_row_are_read_from_left_to_right() -> None:
    lines = [line("b", 0.5, 0.52, 0.2), line("c", 0.1, 0.7), line("a", 0.1, 0.5, 0.38)]
    assert texts(in_reading_order(lines)) == ["a", "b", "c"]
    assert in_reading_order([]) == ()
