"""Images: files against Pillow, sizes and patches against transformers, errors by their words."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import torch
from omni_encoders.features import fitted_size, patchify, resize
from omni_encoders.image import ImageEncoder, PixelLimits, decode_image
from omni_encoders.image_header import read_header
from omni_encoders.vision import VisionTower
from picture_samples import file_of, picture, reference_pixels
from PIL import Image
from tiny_vision import make_reference, make_tower, relative_rms
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from omni.errors import InputError

LIMITS = PixelLimits(min_pixels=64 * 64, max_pixels=256 * 256)


def processor(limits: PixelLimits) -> Qwen2VLImageProcessor:
    """As the preprocessor_config.json of Qwen3.5 sets it up."""
    return Qwen2VLImageProcessor(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return make_tower(make_reference())


SIZES = [(64, 64), (333, 517), (480, 640), (31, 33), (17, 900), (1, 1), (11, 10), (1201, 799)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [LIMITS, PixelLimits()], ids=["small", "published"])
def test_patches_equal_transformers(size: tuple[int, int], limits: PixelLimits) -> None:
    pixels = picture(*size)
    expected = processor(limits)(Image.fromarray(pixels), return_tensors="pt")
    fitted = fitted_size(
        *size, multiple=32, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
    )
    assert [1, fitted[0] // 16, fitted[1] // 16] == expected["image_grid_thw"][0].tolist()
    frame = resize(pixels, fitted)
    got = patchify(torch.stack([frame, frame]), 16, 2, 2)
    # The resized bytes are equal; only the order of the normalisation's roundings may differ.
    torch.testing.assert_close(got, expected["pixel_values"], rtol=0, atol=2e-7)


def test_image_seen_equals_transformers() -> None:
    reference = make_reference()
    pixels = picture(150, 210)
    inputs = processor(LIMITS)(pixels, return_tensors="pt")
    with torch.inference_mode():
        seen = reference(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    encoder = ImageEncoder(make_tower(reference), LIMITS)
    span = encoder.encode(pixels, at_ms=700)
    assert relative_rms(span.embeddings, seen.pooler_output) <= 1e-5
    assert (span.start_ms, span.end_ms, span.final) == (700, 700, True)
    assert len(span.embeddings) == span.positions.shape[1] == encoder.num_tokens(150, 210)


def test_resizing_leaves_the_callers_buffer_alone() -> None:
    pixels = picture(64, 96)
    for size in ((64, 96), (32, 64)):
        frame = resize(pixels, size)
        before = frame.clone()
        pixels[:] = 255 - pixels
        assert torch.equal(frame, before)


def test_read_only_pixels_are_seen_without_a_warning() -> None:
    pixels = picture(40, 40)
    pixels.flags.writeable = False
    assert resize(pixels, (32, 32)).shape == (3, 32, 32)


def test_a_strip_is_refused(tower: VisionTower) -> None:
    with pytest.raises(ValueError, match="2010x10 is too long, expected at most 200:1"):
        ImageEncoder(tower).num_tokens(10, 2010)
    assert ImageEncoder(tower).num_tokens(10, 2000) > 0


def _transparent(image: Image.Image) -> Image.Image:
    ramp = np.linspace(0, 255, image.width, dtype=np.uint8)
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


PLAIN = Image.fromarray(picture(45, 70))
PALETTE = PLAIN.quantize(32)
FILES = {
    "jpeg": file_of(PLAIN, "JPEG", quality=80),
    "jpeg-progressive": file_of(PLAIN, "JPEG", progressive=True),
    "jpeg-444": file_of(PLAIN, "JPEG", subsampling=0),
    "jpeg-grey": file_of(PLAIN.convert("L"), "JPEG"),
    "jpeg-cmyk": file_of(PLAIN.convert("CMYK"), "JPEG"),
    "png": file_of(PLAIN, "PNG"),
    "png-grey": file_of(PLAIN.convert("L"), "PNG"),
    "png-bilevel": file_of(PLAIN.convert("1"), "PNG"),
    "png-palette": file_of(PALETTE, "PNG"),
    "png-palette-transparent": file_of(PALETTE, "PNG", transparency=5),
    "png-alpha": file_of(_transparent(PLAIN), "PNG"),
    "png-grey-alpha": file_of(_transparent(PLAIN).convert("LA"), "PNG"),
    "png-16-bit": cv2.imencode(".png", picture(45, 70).astype(np.uint16) * 257)[1].tobytes(),
    "webp": file_of(PLAIN, "WEBP"),
    "webp-lossless": file_of(PLAIN, "WEBP", lossless=True),
    "webp-alpha": file_of(_transparent(PLAIN), "WEBP"),
    "gif": file_of(PALETTE, "GIF"),
    "gif-transparent": file_of(PALETTE, "GIF", transparency=5),
}


@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_equal_pillows(name: str) -> None:
    got, expected = decode_image(FILES[name]), reference_pixels(FILES[name])
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert "transparent" not in name or (expected == 255).all(axis=2).any()
    # One step of 255: CMYK and blending are rounded differently.
    assert np.abs(got.astype(int) - expected).max() <= ("cmyk" in name or "alpha" in name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_upright_however_the_camera_was_held(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(PLAIN, kind, exif=exif)
    got = decode_image(data)
    assert got.shape == ((70, 45, 3) if orientation >= 5 else (45, 70, 3))
    np.testing.assert_array_equal(got, reference_pixels(data))


@pytest.mark.parametrize("exif", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_not_spoil_the_picture(exif: bytes) -> None:
    data = file_of(PLAIN, "JPEG", exif=b"Exif\0\0" + exif)
    assert read_header(data).orientation == 1
    assert decode_image(data).shape == (45, 70, 3)


def test_orientation_is_read_in_both_byte_orders() -> None:
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = struct.pack(order + "HHHIHH", 1, 0x0112, 3, 1, 6, 0)
        exif = b"Exif\0\0" + mark + struct.pack(order + "I", 8) + entries
        assert read_header(file_of(PLAIN, "JPEG", exif=exif)).orientation == 6


@pytest.mark.parametrize("name", FILES)
def test_header_tells_kind_and_size(name: str) -> None:
    header = read_header(FILES[name])
    assert header.kind.lower() == name.split("-")[0]
    assert (header.width, header.height, header.is_animated) == (70, 45, False)


@pytest.mark.parametrize("name", FILES)
def test_truncated_image_is_refused_wherever_it_ends(name: str) -> None:
    data = FILES[name]
    for length in {*range(14, len(data), 97), len(data) - 4, len(data) - 1}:
        with pytest.raises(ValueError, match=r"ends too early|begins:|damaged"):
            decode_image(data[:length])
    with pytest.raises(ValueError, match=f"ends too early, after {len(data) // 2} bytes; send"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animated_image_is_refused(kind: str) -> None:
    others = [Image.fromarray(picture(45, 70, seed)) for seed in (1, 2)]
    data = file_of(PLAIN, kind, save_all=True, append_images=others, duration=100)
    with pytest.raises(ValueError, match="image is animated; send one frame of it, or a video"):
        decode_image(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, world", b"%PDF-1.7 ...", b"\xff\xd8"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JPEG, PNG, WebP or GIF image, got data"):
        decode_image(data)


def test_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1x1 pixels, expected at least 10 on each side"):
        decode_image(file_of(PLAIN.crop((0, 0, 1, 1)), "PNG"))


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    data = _png(20_000, 20_000, zlib.compress(b"\0"))  # decoding would ask for 1.2 GB
    with pytest.raises(ValueError, match="20000x20000 pixels, expected at most 67,108,864; reduce"):
        decode_image(data)


def test_seeing_through_a_large_image_takes_no_multiple_of_its_own_memory() -> None:
    pixels = np.zeros((1500, 1500, 4), dtype=np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    tracemalloc.start()
    try:
        seen = decode_image(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (seen == 255).all()
    assert peak_bytes < 2.5 * pixels.nbytes  # with fractions of the whole picture it is 10


@pytest.mark.parametrize("name", FILES)
def test_a_picture_of_too_many_pixels_is_halved(name: str) -> None:
    expected = np.asarray(Image.fromarray(reference_pixels(FILES[name])).reduce(2), dtype=int)
    got = decode_image(FILES[name], whole_pixels=45 * 70 - 1)
    assert got.dtype == np.uint8
    assert got.shape == (23, 35, 3)
    # A JPEG's decoder leaves out frequencies, which is not quite the mean of four pixels.
    assert np.abs(got - expected).mean() < (6 if "jpeg" in name else 1)
    whole = decode_image(FILES[name], whole_pixels=45 * 70)
    np.testing.assert_array_equal(whole, decode_image(FILES[name]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_halved_picture_is_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    held, turned = file_of(PLAIN, kind), file_of(PLAIN, kind, exif=exif)
    expected = np.rot90(decode_image(held, whole_pixels=1), -1)
    np.testing.assert_array_equal(decode_image(turned, whole_pixels=1), expected)


def test_a_photograph_of_many_megapixels_keeps_what_the_readers_look_at() -> None:
    data = cv2.imencode(".jpg", np.full((4801, 4800), 200, np.uint8))[1].tobytes()
    assert decode_image(data).shape == (2401, 2400, 3)


def test_image_without_a_body_is_refused() -> None:
    with pytest.raises(ValueError, match="PNG image is damaged and cannot be decoded"):
        decode_image(_png(64, 64, b"no zlib stream"))


def test_random_damage_never_raises_anything_but_an_input_error() -> None:
    rng = np.random.default_rng(4)
    for name, data in FILES.items():
        for _ in range(40):
            spoilt = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 3):
                spoilt[at] = rng.integers(0, 256)
            with contextlib.suppress(InputError):
                pixels = decode_image(bytes(spoilt))
                assert pixels.ndim == 3, name
                assert pixels.shape[2] == 3, name
