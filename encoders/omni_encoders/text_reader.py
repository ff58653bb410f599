"""Reads the text in a picture: RapidOCR's PP-OCR networks, line by line, in reading order.

Called by :mod:`omni_encoders.eyes` when somebody asks for text; takes 0.2 to 2 CPU-seconds, so it
stops between lines when nobody waits any more. The weights come with the package ``rapidocr``.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from omni.errors import CancelledError, ModelError
from omni.scene import Lettering

StopCheck = Callable[[], bool]

LEAST_CONFIDENCE = 0.6
"""Mean probability of a line's characters below which it is not text, or not readable."""

MAX_LINES = 100
"""The largest lines of a page of print; a line costs about 20 ms."""

MAX_SIDE = 1600
"""Pixels of the longer side that are looked at."""

MIN_SIDE = 640
"""Smaller pictures are enlarged, at most twice: the detector was trained on larger print."""

MAX_PROPORTION = 8
"""Of the sides that the package sees: it enlarges the shorter one to 736 pixels, whatever becomes
of the longer. A strip of 3000 x 10 took 34 s and 3 GB."""

EDGE = 0.006
"""Share of the picture within which a line touches its edge."""

PROSE = 12
"""Letters of a line from which a column is prose and not part of a table."""

INK_AT_EDGE = 0.3
"""Spread of luminance there, as a share of the line's, from which it goes on outside."""

DULL = 0.8
"""Luminance of the paper in the darkest twentieth below which a picture is evened out."""

DARKEST_PAPER = 0.2
"""Luminance of what may still be paper in the shade; darker ground stays dark."""


class TextReader:
    """PP-OCR with one onnxruntime thread; threads may share it, one reads at a time."""

    def __init__(self) -> None:
        """Load the detector, the turner and the recogniser of lines.

        Raises:
            ModelError: the package's weights are missing.
        """
        from rapidocr import RapidOCR
        from rapidocr.utils.typings import EngineType

        found = importlib.util.find_spec("rapidocr")
        assert found is not None
        assert found.origin is not None
        weights = Path(found.origin).parent / "models"
        parameters: dict[str, Any] = {
            "Global.log_level": "critical",  # it says at every start which files it took
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        for part, file in (
            ("Det", "PP-OCRv6_det_small.onnx"),
            ("Cls", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
            ("Rec", "PP-OCRv6_rec_small.onnx"),
        ):
            if not (weights / file).is_file():
                # Named by path and checked here: on its own the package would download them.
                raise ModelError(
                    f"the package rapidocr has no {file}: install rapidocr==3.10.0 again"
                )
            parameters[f"{part}.model_path"] = str(weights / file)
            parameters[f"{part}.engine_type"] = EngineType.ONNXRUNTIME
        self._engine: Any = RapidOCR(params=parameters)
        self._lock = threading.Lock()

    def read(
        self, pixels: NDArray[np.uint8], should_stop: StopCheck = lambda: False
    ) -> tuple[Lettering, ...]:
        """The lines of text in ``pixels`` (RGB [H, W, 3]) in reading order.

        Raises:
            CancelledError: ``should_stop()`` became true between two lines.
        """
        prepared = _prepared(pixels)
        page = filled_up(prepared)
        with self._lock:
            _stop(should_stop)
            # Found first, then read line by line: the package's own call cannot be stopped.
            found: Any = self._engine(page, use_det=True, use_cls=False, use_rec=False)
            if found.boxes is None:
                return ()
            corners = sorted(found.boxes, key=lambda four: -cv2.contourArea(four))[:MAX_LINES]
            lines = []
            for four in corners:
                _stop(should_stop)
                (crop,) = self._engine.crop_text_regions(page, [four])
                (turned,), _ = self._engine.cls_and_rotate([crop])
                result = self._engine.recognize_txt([turned])
                text, confidence = result.txts[0].strip(), float(result.scores[0])
                if text and confidence >= LEAST_CONFIDENCE:
                    lines.append(_lettering(text, confidence, four, prepared))
        return in_reading_order(lines)


def in_reading_order(lines: Sequence[Lettering]) -> tuple[Lettering, ...]:
    """Top to bottom, within a row from left to right, columns of prose one after the other.

    The page is cut where straight gaps part it (after the X-Y cut, Nagy and Seth 1984). Columns of
    a few letters each are a table, a menu with its prices: that is read row by row.
    """
    tall = float(np.median([line.box[3] - line.box[1] for line in lines])) if lines else 0.0
    ordered: list[Lettering] = []
    block: list[Lettering] = []  # rows in a row that have columns in common
    for row in [*_parted(lines, axis=1, least_gap=0.0), []]:
        if row and (not block or len(_parted(block + row, axis=0, least_gap=0.8 * tall)) > 1):
            block += row
            continue
        columns = _parted(block, axis=0, least_gap=0.8 * tall)
        if len(columns) > 1 and all(_is_prose(column) for column in columns):
            ordered += [line for column in columns for line in _by_rows(column, tall)]
        else:
            ordered += _by_rows(block, tall)
        block = list(row)
    return tuple(ordered)


def _is_prose(column: Sequence[Lettering]) -> bool:
    return len(column) > 1 and float(np.median([len(line.text) for line in column])) >= PROSE


def _by_rows(lines: Sequence[Lettering], tall: float) -> list[Lettering]:
    """By their middles, so that slanted lines that overlap are still apart."""
    rows: list[list[Lettering]] = []
    for line in sorted(lines, key=lambda line: line.box[1] + line.box[3]):
        middle = (line.box[1] + line.box[3]) / 2
        if rows and middle < rows[-1][0].box[3] - 0.2 * tall:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box[0])]


def _parted(lines: Sequence[Lettering], axis: int, least_gap: float) -> list[list[Lettering]]:
    """Groups of ``lines`` with gaps of at least ``least_gap`` along ``axis`` between them."""
    groups: list[list[Lettering]] = []
    end = 0.0
    for line in sorted(lines, key=lambda line: line.box[axis]):
        if groups and line.box[axis] - end < least_gap:
            groups[-1].append(line)
            end = max(end, line.box[axis + 2])
        else:
            groups.append([line])
            end = line.box[axis + 2]
    return groups


def _prepared(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BGR of a size that the networks read well, evened out if its light is poor."""
    longer = max(pixels.shape[:2])
    scale = min(MAX_SIDE / longer, max(1.0, min(2.0, MIN_SIDE / longer)))
    image = np.ascontiguousarray(pixels[:, :, ::-1])
    if scale != 1.0:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    # Paper in poor or uneven light: what is brightest around each place becomes white.
    reach = max(3, max(image.shape[:2]) // 50)
    around = cv2.dilate(grey, np.ones((reach, reach), dtype=np.uint8)).astype(np.float32)
    paper = np.maximum(cv2.GaussianBlur(around, (0, 0), reach), DARKEST_PAPER * 255)
    if np.percentile(paper, 5) >= DULL * 255:
        return image
    return np.asarray(np.clip(image * (240 / paper)[:, :, None], 0, 255), dtype=np.uint8)


def filled_up(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``image`` [H, W, 3] with a margin below or on the right if it is a strip."""
    height, width = image.shape[:2]
    below, right = (max(0, -(-max(height, width) // MAX_PROPORTION) - n) for n in (height, width))
    if not below and not right:
        return image
    ground = [float(value) for value in np.median(image, axis=(0, 1))]
    margins = (0, below, 0, right)
    filled = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=ground)
    return np.asarray(filled, dtype=np.uint8)


def _lettering(
    text: str, confidence: float, corners: NDArray[np.floating], image: NDArray[np.uint8]
) -> Lettering:
    height, width = image.shape[:2]
    left, top = (min(1.0, max(0.0, float(x))) for x in corners.min(axis=0) / (width, height))
    right, bottom = (min(1.0, max(0.0, float(x))) for x in corners.max(axis=0) / (width, height))
    box = (left, top, right, bottom)
    return Lettering(
        text=text, confidence=min(1.0, confidence), box=box, is_cut_off=_runs_out(box, image)
    )


def _runs_out(box: tuple[float, float, float, float], image: NDArray[np.uint8]) -> bool:
    """Whether there is ink where a line's ``box`` touches the edge of ``image``.

    Boxes have margins, so that a line that only begins near the edge touches it too.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box
    columns = slice(int(left * width), max(int(right * width), int(left * width) + 1))
    rows = slice(int(top * height), max(int(bottom * height), int(top * height) + 1))
    line = cv2.cvtColor(np.ascontiguousarray(image[rows, columns]), cv2.COLOR_BGR2GRAY)
    deep = max(1, min(line.shape) // 12)  # less than a stroke
    strips = (
        (left, line[:, :deep]),
        (1 - right, line[:, -deep:]),
        (top, line[:deep]),
        (1 - bottom, line[-deep:]),
    )
    enough = INK_AT_EDGE * float(line.std())
    return any(gap < EDGE and float(strip.std()) > enough for gap, strip in strips)


def _stop(should_stop: StopCheck) -> None:
    if should_stop():
        raise CancelledError("nobody waits for this text any more")
