"""What an image file says of itself before it is decoded: kind, size, orientation, animation.

Used by :mod:`omni_encoders.image`. A decoder would allocate what the header asks for and makes the
best of a file that ends too early; so the size is checked, and the file's end found, before one
sees the bytes. JPEG, PNG, WebP and GIF, as the Realtime and Chat APIs take them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from omni.errors import InputError

Kind = Literal["JPEG", "PNG", "WebP", "GIF"]

MARK_BYTES = 12
"""By so many a file's kind is known."""

_EXIF_ORIENTATION = 0x0112
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame: has the size
_START_OF_SCAN = 0xDA
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """``width`` and ``height`` are as stored, before ``orientation`` (EXIF, 1..8) is applied."""

    kind: Kind
    width: int
    height: int
    orientation: int = 1
    is_animated: bool = False


MIN_SIDE_PIXELS = 10  # below it an image is a tracking pixel or a mistake: there is nothing to see
MAX_SOURCE_PIXELS = 64 * 2**20  # a 50-megapixel photograph passes; decoded it takes 150 MB


def inspect(data: bytes) -> ImageHeader:
    """Read the header of an image that is to be decoded.

    Raises:
        InputError: as :func:`read_header`; or animated, too small or too large.
    """
    header = read_header(data)
    size = f"{header.width}x{header.height}"
    if header.is_animated:
        raise InputError(f"the {header.kind} image is animated; send one frame of it, or a video")
    if header.width * header.height > MAX_SOURCE_PIXELS:
        raise InputError(
            f"the image has {size} pixels, expected at most {MAX_SOURCE_PIXELS:,}; reduce it"
        )
    if min(header.width, header.height) < MIN_SIDE_PIXELS:
        raise InputError(
            f"the image has {size} pixels, expected at least {MIN_SIDE_PIXELS} on each side"
        )
    return header


def read_header(data: bytes) -> ImageHeader:
    """Read the header of a whole file.

    Raises:
        InputError: not one of the four kinds, ends too early, or names no size.
    """
    kind = kind_of(data)
    if kind is None:
        beginning = data[:8].hex(" ") or "nothing"
        raise InputError(
            f"expected a JPEG, PNG, WebP or GIF image, got data that begins: {beginning}"
        )
    read = {"JPEG": _read_jpeg, "PNG": _read_png, "WebP": _read_webp, "GIF": _read_gif}[kind]
    try:
        return read(data)
    except (struct.error, IndexError):
        raise _truncated(data) from None


def kind_of(beginning: bytes) -> Kind | None:
    """What kind of image begins with these :data:`MARK_BYTES` or more; None: none of the four."""
    if beginning.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "WebP"
    return "GIF" if beginning.startswith((b"GIF87a", b"GIF89a")) else None


def _truncated(data: bytes) -> InputError:
    return InputError(f"the image ends too early, after {len(data)} bytes; send the whole file")


def _read_jpeg(data: bytes) -> ImageHeader:
    size, orientation, at = None, 1, 2
    while True:
        if data[at] != 0xFF:
            raise InputError(f"the JPEG image is damaged at byte {at}; send it again")
        marker = data[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker in _JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", data, at + 5)
                size = width, height
            elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
            if marker == _START_OF_SCAN:
                break
    # Compressed data escapes 0xFF, so the end mark cannot occur within a scan.
    if data.find(b"\xff\xd9", at) < 0:
        raise _truncated(data)
    if size is None or not all(size):
        raise InputError("the JPEG image has no size in its header; save it anew")
    return ImageHeader(kind="JPEG", width=size[0], height=size[1], orientation=orientation)


def _read_png(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 16)
    orientation, is_animated, at = 1, False, 8
    while True:
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise _truncated(data)
        if name == b"acTL":
            is_animated = struct.unpack_from(">I", data, at + 8)[0] > 1
        elif name == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        elif name == b"IEND":
            break
        at += 12 + length  # length, name, data, checksum
    return ImageHeader(
        kind="PNG", width=width, height=height, orientation=orientation, is_animated=is_animated
    )


def _read_webp(data: bytes) -> ImageHeader:
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    if 8 + riff_bytes > len(data):
        raise _truncated(data)
    size, orientation, is_animated, at = None, 1, False, 12
    while at + 8 <= 8 + riff_bytes:
        name, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if name == b"VP8X":
            is_animated = bool(data[body] & 0x02)
            sides = (int.from_bytes(data[body + i : body + i + 3], "little") + 1 for i in (4, 7))
            size = next(sides), next(sides)
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = width & 0x3FFF, height & 0x3FFF  # the upper two bits ask for scaling
        elif name == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"EXIF":
            exif = data[body : body + length].removeprefix(b"Exif\0\0")  # some writers add it
            orientation = _orientation(exif)
        at = body + length + length % 2
    if size is None or not all(size):
        raise InputError("the WebP image has no size in its header; save it anew")
    return ImageHeader(
        kind="WebP",
        width=size[0],
        height=size[1],
        orientation=orientation,
        is_animated=is_animated,
    )


def _read_gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_palette_bytes(flags)
    num_images = 0
    while data[at] != _GIF_TRAILER:
        if data[at] == _GIF_EXTENSION:
            at = _after_gif_blocks(data, at + 2)
        elif data[at] == _GIF_IMAGE:
            num_images += 1
            # Descriptor, palette, and the byte with the code size come before the blocks.
            at = _after_gif_blocks(data, at + 11 + _gif_palette_bytes(data[at + 9]))
        else:
            raise InputError(f"the GIF image is damaged at byte {at}; send it again")
    return ImageHeader(kind="GIF", width=width, height=height, is_animated=num_images > 1)


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 0x07) + 1 if flags & 0x80 else 0


def _after_gif_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _orientation(exif: bytes) -> int:
    """EXIF orientation 1..8; 1 where there is none or the block makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (num_entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _EXIF_ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass  # a damaged note on how the camera was held does not spoil the picture
    return 1
