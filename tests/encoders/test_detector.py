"""The detector: the graph reader against plain torch, and what it finds on real photos."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omni_encoders.detector import Detector, Finding, letterbox, merged, overlap
from omni_encoders.tfjs_graph import TfjsGraph
from photos import needs_street, photo, street

from omni.errors import CancelledError, ModelError


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


def write_graph(folder: Path, op: str = "LeakyRelu") -> dict[str, np.ndarray]:
    """A graph of a strided convolution with bias, an activation and a resize; its weights."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float16),
        "bias": rng.normal(size=(4,)).astype(np.float16),
        "pads": np.asarray([[0, 0], [0, 0], [1, 1], [1, 1]], dtype=np.int32),
        "to_last": np.asarray([0, 2, 3, 1], dtype=np.int32),
        "size": np.asarray([9, 6], dtype=np.int32),
    }
    attributes = {
        "strides": {"list": {"i": ["1", "2", "2", "1"]}},
        "dilations": {"list": {"i": ["1", "1", "1", "1"]}},
        "padding": text("VALID"),
        "data_format": text("NHWC"),
    }
    resize = {"align_corners": {"b": False}, "half_pixel_centers": {"b": True}}
    nodes = [
        {"name": "x", "op": "Placeholder"},
        *({"name": name, "op": "Const"} for name in weights),
        {"name": "padded", "op": "Pad", "input": ["x", "pads"]},
        {"name": "last", "op": "Transpose", "input": ["padded", "to_last"]},
        {"name": "conv", "op": "Conv2D", "input": ["last", "kernel"], "attr": attributes},
        {"name": "sum", "op": "Add", "input": ["conv", "bias"]},
        {"name": "act", "op": op, "input": ["sum"], "attr": {"alpha": {"f": 0.1}}},
        {"name": "y", "op": "ResizeBilinear", "input": ["act", "size"], "attr": resize},
    ]
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": "int32"}
        if array.dtype == np.int32
        else {
            "name": name,
            "shape": list(array.shape),
            "dtype": "float32",
            "quantization": {"dtype": "float16"},
        }
        for name, array in weights.items()
    ]
    model = {
        "modelTopology": {"node": list(reversed(nodes))},  # order is the reader's business
        "weightsManifest": [{"paths": ["tiny.bin"], "weights": entries}],
        "signature": {"inputs": {"x:0": {}}, "outputs": {"y:0": {}}},
    }
    (folder / "tiny.json").write_text(json.dumps(model))
    (folder / "tiny.bin").write_bytes(b"".join(array.tobytes() for array in weights.values()))
    return weights


def test_a_graph_gives_what_the_same_operations_give_in_torch(tmp_path: Path) -> None:
    weights = {name: torch.from_numpy(array) for name, array in write_graph(tmp_path).items()}
    value = torch.randn(1, 2, 11, 8, generator=torch.Generator().manual_seed(1))
    kernel = weights["kernel"].float().permute(3, 2, 0, 1)
    wanted = F.conv2d(value, kernel, weights["bias"].float(), stride=2, padding=1)
    wanted = F.interpolate(F.leaky_relu(wanted, 0.1), size=(9, 6), mode="bilinear")
    result = TfjsGraph(tmp_path / "tiny.json").run(value)["y"]
    torch.testing.assert_close(result, wanted.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_an_unknown_operation_is_refused_when_the_graph_is_opened(tmp_path: Path) -> None:
    write_graph(tmp_path, op="Softsign")
    with pytest.raises(ModelError, match="act is a Softsign, which is not known"):
        TfjsGraph(tmp_path / "tiny.json")


def test_weights_of_another_length_are_refused(tmp_path: Path) -> None:
    write_graph(tmp_path)
    with (tmp_path / "tiny.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(ModelError, match=r"hold \d+ bytes, expected \d+.*fetch it again"):
        TfjsGraph(tmp_path / "tiny.json")
    (tmp_path / "tiny.bin").unlink()
    with pytest.raises(ModelError, match="fetch it again"):
        TfjsGraph(tmp_path / "tiny.json")


def test_weights_with_which_nothing_runs_are_damaged(tmp_path: Path) -> None:
    write_graph(tmp_path)
    (tmp_path / "tiny.json").rename(tmp_path / "nanodet.json")
    with pytest.raises(ModelError, match=r"is damaged, or another network than NanoDet.*\(.+\)$"):
        Detector(tmp_path)


def test_overlap_is_the_shared_part_of_both() -> None:
    one = np.asarray([0.0, 0.0, 2.0, 2.0])
    others = np.asarray([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 2.0, 3.0, 3.0]])
    np.testing.assert_allclose(overlap(one, others), [1.0, 1 / 3, 0.0])


def test_two_views_agree_on_a_thing_or_halve_its_score() -> None:
    cat = Finding("cat", 0.8, (0.1, 0.1, 0.5, 0.5))
    again = Finding("cat", 0.6, (0.12, 0.1, 0.5, 0.5))
    dog = Finding("dog", 0.7, (0.1, 0.1, 0.5, 0.5))
    (both,) = merged([cat], [again])
    assert both == Finding("cat", pytest.approx(0.7), cat.box)
    scores = {thing.label: thing.score for thing in merged([cat], [dog])}
    assert scores == {"cat": pytest.approx(0.475), "dog": pytest.approx(0.425)}


def test_a_letterbox_keeps_proportions_and_gives_the_way_back() -> None:
    pixels = np.full((100, 300, 3), 255, dtype=np.uint8)
    square, scale, left, top = letterbox(pixels, 0.5)
    is_white = square[0].amin(dim=0) > 2
    rows, columns = is_white.any(dim=1).nonzero()[:, 0], is_white.any(dim=0).nonzero()[:, 0]
    assert (len(columns), len(rows)) == (208, 69)
    assert (int(columns[0]), int(rows[0])) == (left, top)
    assert left + 300 * scale == pytest.approx(float(columns[-1]) + 1, abs=1)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("astronaut", "person"),
        ("camera", "person"),
        ("chelsea", "cat"),
        ("motorcycle_left", "motorcycle"),
        ("horse", "horse"),
    ],
)
def test_the_surest_finding_on_a_photo_is_what_it_shows(
    detector: Detector, name: str, label: str
) -> None:
    findings = detector.find(photo(name))
    assert findings[0].label == label
    assert findings[0].score > 0.6
    assert all(thing.score < findings[0].score - 0.1 for thing in findings[1:])


@pytest.mark.weights
def test_a_cup_that_fills_the_picture_is_found(detector: Detector) -> None:
    (cup,) = [thing for thing in detector.find(photo("coffee")) if thing.label == "cup"]
    wanted = np.asarray([0.28, 0.04, 0.72, 0.62])  # without its saucer, by eye
    assert float(overlap(np.asarray(cup.box), wanted[None])[0]) > 0.5


@pytest.mark.weights
@pytest.mark.parametrize("name", ["grass", "gravel", "brick", "text", "page", "rocket"])
def test_nothing_sure_is_found_where_none_of_its_kinds_is(detector: Detector, name: str) -> None:
    assert all(thing.score < 0.5 for thing in detector.find(photo(name)))


@pytest.mark.weights
@needs_street
def test_people_in_the_street_are_counted_as_by_eye(detector: Detector) -> None:
    wanted = {0: 3, 200: 7, 250: 7, 400: 3, 450: 3}
    frames = street(*wanted)
    counted = {
        number: sum(f.label == "person" and f.score >= 0.4 for f in detector.find(frame))
        for number, frame in zip(wanted, frames, strict=True)
    }
    assert counted == wanted


@pytest.mark.weights
def test_a_thing_is_where_its_pixels_are(detector: Detector) -> None:
    """Moved in a larger picture, the box moves with it."""
    cat = photo("chelsea")
    height, width = cat.shape[:2]
    large = np.full((2 * height, 2 * width, 3), 128, dtype=np.uint8)
    large[height:, width:] = cat
    found = next(thing for thing in detector.find(large) if thing.label == "cat")
    wanted = np.asarray([[0.5, 0.5, 1.0, 1.0]])
    assert float(overlap(np.asarray(found.box), wanted)[0]) > 0.7


@pytest.mark.weights
def test_looking_stops_between_operations(detector: Detector) -> None:
    asked = iter(range(1000))
    with pytest.raises(CancelledError):
        detector.find(photo("chelsea"), should_stop=lambda: next(asked) == 100)


@pytest.mark.weights
def test_any_shape_of_picture_can_be_looked_at(detector: Detector) -> None:
    for shape in ((1, 1), (10, 2000), (2000, 10)):
        for thing in detector.find(np.zeros((*shape, 3), dtype=np.uint8)):
            left, top, right, bottom = thing.box
            assert 0 <= left <= right <= 1
            assert 0 <= top <= bottom <= 1
