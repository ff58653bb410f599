"""Pictures inside client messages: a data URI becomes the bytes of a file that can be decoded.

Called by :mod:`omni_streaming.requests`. Headers only: nothing is decoded here.
"""

from __future__ import annotations

import base64
import binascii
import re

from omni_encoders.image_header import inspect

from omni.errors import InputError

MAX_SHOWN_CHARS = 40
"""Of a bad address, in a message."""

_DATA_URI = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.ASCII)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.ASCII | re.IGNORECASE)


def read_data_uri(uri: str) -> bytes:
    """The file in a base64 data URI: a still JPEG, PNG, WebP or GIF, whatever it calls itself.

    Raises:
        InputError: another kind of address, no image by its name, bad base64, or a file that
            :func:`omni_encoders.image_header.inspect` refuses.
    """
    match = _DATA_URI.match(uri)
    if match is None:
        raise _elsewhere(uri)
    mime, options = match.groups()
    if not mime.lower().startswith("image/"):
        raise InputError(f"The data URI holds {mime or 'text'!r}, expected image/jpeg or another.")
    if not options.lower().endswith(";base64"):
        raise InputError("The image is not base64; expected data:image/jpeg;base64,...")
    text = uri[match.end() :]
    if _ADDRESS.match(text):  # given as the base64 of a frame, which needs no "data:" before it
        raise _elsewhere(text)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"The image is not valid base64: {error}.") from None
    inspect(data)
    return data


def _elsewhere(address: str) -> InputError:
    shown = address[:MAX_SHOWN_CHARS] + ("..." if len(address) > MAX_SHOWN_CHARS else "")
    return InputError(
        f"The image is at {shown!r}, expected a data URI (data:image/jpeg;base64,...): "
        "images are never fetched from elsewhere."
    )
