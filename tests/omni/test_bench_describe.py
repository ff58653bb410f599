"""`omni bench describe`: its clips hold what they say, its figures count what they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omni_streaming.describe_file import Utterance
from omni_streaming.describe_hazards import judge

from omni.benchmarks import describe_material as material
from omni.benchmarks.describe import AGAIN_MS, Told, duplicates, is_towards, static
from omni.benchmarks.describe_report import COMMAND, PARTS, draw, rows
from omni.cli import bench, main
from omni.scene import Scene, Thing
from tests.omni.test_cli_describe import Eyes

needs_street = pytest.mark.skipif(
    not material.STREET.is_file(), reason="needs the street video of Debian's package opencv-doc"
)

FOUND: dict[str, Any] = {
    "hazards": {"count": 20, "warned": 18, "left_p50_s": 2.4, "left_p5_s": 1.2},
    "quiet": {
        "seconds": 600.0,
        "false_alarms": 3,
        "false_alarms_per_5_min": 1.5,
        "changes": 40,
        "duplicates": 1,
        "words_p50": 9.0,
        "words_most": 31,
        "share": 0.31,
        "worst_share": 0.39,
        "stale_p95_s": 0.4,
        "clips": [{"name": "street", "false_alarms": [(1, "x")], "changes": 4}],
    },
    "static": {"count": 8, "silent": 7},
    "abstention": {"count": 10, "abstained": 8},
    "warnings": {
        "count": 2,
        "warned": 2,
        "talking": 2,
        "p50_s": 1.0,
        "p95_s": 1.9,
        "clips": [{"delay_s": 1.0}, {"delay_s": 1.9}],
    },
    "changes": {"count": 2, "told": 1, "p50_s": 1.0, "p95_s": 1.0, "clips": [{"delay_s": None}]},
    "asking": {
        "count": 1,
        "answered": 1,
        "right": 1,
        "p50_s": 1.6,
        "p95_s": 1.6,
        "turns": [{"delay_s": 1.6}],
    },
    "reading": {
        "count": 1,
        "read": 1,
        "words": 5,
        "right_words": 5,
        "first_sound_p95_s": 1.4,
        "text_p50_s": 2.0,
        "text_p95_s": 2.0,
        "signs": [{"text_s": 2.0}],
    },
    "looks": {"fps": 4.0, "alone_fps": 8.0, "answer_p50_s": 0.8},
}


def test_every_part_has_its_rows_and_each_target_its_verdict() -> None:
    assert list(PARTS) == list(bench.SCENARIOS["describe"])
    met = {row.what.split(",")[0]: row.met for row in rows(FOUND)}
    assert [value for value in met.values() if value is not None] == [
        True,  # 18 of 20 warned of
        False,  # 1.5 false alarms
        True,
        False,  # 31 words
        True,
        True,
        False,  # a static scene was described twice
        True,
        True,
        False,  # a change of which nothing was said
        False,  # 1.6 s
        True,
        True,
    ]
    assert all(row.command == COMMAND for row in rows(FOUND))
    assert rows({"static": FOUND["static"]}) == rows(FOUND)[7:8]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(tmp_path, FOUND).stat().st_size > 10_000


def said(text: str, began_ms: int, *, cut_off: bool = False) -> Utterance:
    return Utterance("change", text, began_ms, began_ms, began_ms, began_ms + 1_000, cut_off)


def test_a_repetition_is_the_same_words_soon_after_they_were_heard() -> None:
    assert duplicates([said("A dog.", 0), said("A cat.", 5_000), said("A dog.", 9_000)]) == 1
    assert duplicates([said("A dog.", 0, cut_off=True), said("A dog.", 9_000)]) == 0
    assert duplicates([said("A dog.", 0), said("A dog.", 2_000 + AGAIN_MS)]) == 0


def test_shares_are_of_whole_minutes() -> None:
    """Two bursts of 24 s, a minute apart: never more than 40% of a minute."""
    told = Told("a", 90.0)
    for began_ms in (*range(0, 24_000, 1_000), *range(60_000, 84_000, 1_000)):
        told.said.append(said("A dog.", began_ms))
    assert max(told.shares("change")) == pytest.approx(0.4)
    assert told.shares("hazard") == [0.0] * 7
    short = Told("b", 30.0, [said("A dog.", 0)])
    assert short.shares("change") == [pytest.approx(1 / 60)]


@pytest.mark.parametrize(
    ("text", "x", "is_right"),
    [
        ("Person approaching, ahead!", 0.5, True),
        ("Person approaching, slightly left!", 0.5, True),
        ("Person approaching, on the left!", 0.5, False),
        ("Person approaching, on the right!", 0.2, False),
    ],
)
def test_a_warning_counts_only_where_somebody_comes(text: str, x: float, is_right: bool) -> None:
    assert is_towards(text, x) is is_right


def test_an_approach_is_dangerous_by_the_limits_that_warnings_have() -> None:
    for approach in material.approaches(8):
        growth_per_s = approach.speed_m_s / approach.metres(approach.danger_ms)
        thing = Thing(
            label="person",
            confidence=0.9,
            box=(0.4, 0.3, 0.5, 0.9),
            distance_m=approach.metres(approach.danger_ms),
            approach_per_s=growth_per_s,
            num_frames=9,
        )
        assert judge(thing) is not None
        before_m = approach.metres(approach.danger_ms - 250)
        before = replace(thing, distance_m=before_m, approach_per_s=approach.speed_m_s / before_m)
        assert judge(before) is None
        assert approach.metres(approach.contact_ms) == pytest.approx(material.CONTACT_M, abs=0.01)


def test_somebody_twice_as_near_is_drawn_twice_as_tall() -> None:
    pixels = np.full((40, 16, 3), 200, np.uint8)
    cutout = material.Cutout(pixels, np.ones((40, 16), np.float32))
    heights = []
    for metres in (8.0, 4.0):
        picture = np.zeros((576, 768, 3), np.uint8)
        material.paste(picture, cutout, 0.5, metres, mirrored=False)
        rows_drawn, columns = np.nonzero(picture.max(2) > 100)
        heights.append(int(rows_drawn.max() - rows_drawn.min()))
        assert abs(columns.mean() / 768 - 0.5) < 0.02
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.03)


@needs_street
def test_an_empty_street_shows_nobody_and_spoilt_pictures_are_of_its_size() -> None:
    street = next(material.street_frames())
    empty = material.background()
    assert street.shape == empty.shape == (576, 768, 3)
    assert np.abs(street.astype(int) - empty).max() > 100  # people
    assert {pixels.shape for pixels in material.spoilt(empty).values()} == {empty.shape}


@needs_street
def test_a_street_that_is_told_twice_is_not_silent() -> None:
    """Eyes that see somebody else come in every five seconds: the measure must say so."""
    pytest.importorskip("skimage")

    class Changing(Eyes):
        def look(self, *args: Any, **more: Any) -> tuple[Scene, object]:
            number = args[1] // 10_000
            box = (0.1 + 0.2 * (number % 4), 0.3, 0.2 + 0.2 * (number % 4), 0.6)
            label = ("dog", "person", "car")[number % 3]
            thing = Thing(label=label, confidence=0.9, box=box, track_id=number + 1, num_frames=3)
            return Scene(at_ms=args[1], things=(thing,)), None

    found = static(Changing(lambda _: Scene(at_ms=0)), lambda _: None, quick=True)
    assert found["silent"] == 0
    assert all(clip["num_after_notice"] > 1 for clip in found["clips"])


def test_a_part_of_another_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "conversation", "--only", "static"]) == 1
    assert capsys.readouterr().err == (
        "omni bench: static is a part of describe: omni bench describe --only static\n"
    )
