"""The on-disk form that a start maps instead of converting: groups in the kernels' layout.

``<home>/repacked/<key>/`` holds ``weights.bin`` (every parameter at a 64-byte boundary) and
``index.json`` (what lies where). A folder appears in one rename, so a half-written one is never
seen; its key changes with the source file and with :data:`VERSION`. Called by
:mod:`omni.models.loading`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from omni_kernels.linear import PackedWeight, pack_quantized

from omni.errors import ModelError
from omni.models.layers import QuantisedRows
from omni.models.parameters import Parameter
from omni.models.weights import Checkpoint, Entry, dense_entry, quantised_entry

VERSION = 5
"""Goes up whenever the files' meaning changes; older folders are then made anew."""

_ALIGNMENT = 64  # a cache line, what the kernels load best
_HEAD_BYTES = 1 << 16
_DRAFT, _DRAFT_LIFE_S = ".draft-", 3600
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8, "float16": torch.float16} | {
    "float32": torch.float32
}

Progress = Callable[[int, int], None]
"""(parameters repacked so far, parameters in all)."""


def key_of(files: Sequence[Path]) -> str:
    """Name of the cache folder for a checkpoint made of ``files``.

    Size, time of change and the first 64 KiB stand for the content: hashing all of it would take
    longer than the start may.
    """
    digest = hashlib.sha256(f"{VERSION}".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_HEAD_BYTES))
    return digest.hexdigest()[:24]


def open_or_make(
    folder: Path,
    plan: Sequence[Entry],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
    *,
    source: str = "",
) -> dict[str, Parameter]:
    """Map the parameters in ``folder``; make it from ``checkpoint`` first if it is not there.

    ``source`` names what they come from (else the checkpoint's path does): what was made of the
    same before goes.

    Raises:
        ModelError: the checkpoint holds NaN, or the disk cannot be written.
    """
    found = _map(folder, plan)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder.parent))
        try:
            source = source or str(checkpoint.path.resolve())
            _write(draft, plan, checkpoint, progress, source)
            if folder.exists():  # damaged, or of another plan: it did not map
                shutil.rmtree(folder)
            draft.rename(folder)
            _remove_stale(folder, source)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        found = _map(folder, plan)  # another process may have been first
        if found is None:
            raise ModelError(f"cannot write repacked weights to {folder}: {error}") from error
        return found
    found = _map(folder, plan)
    assert found is not None
    return found


def _write(
    folder: Path,
    plan: Sequence[Entry],
    checkpoint: Checkpoint,
    progress: Progress | None,
    source: str,
) -> None:
    index: dict[str, Any] = {}
    with (folder / "weights.bin").open("wb") as out:
        for done, entry in enumerate(plan):
            if progress:
                progress(done, len(plan))
            index[entry.target] = _write_entry(entry, checkpoint, out)
        size = out.tell()
    if progress:
        progress(len(plan), len(plan))
    head = {"version": VERSION, "source": source, "size": size}
    text = json.dumps(head | {"parameters": index}, indent=1)
    (folder / "index.json").write_text(text, encoding="utf-8")


def _remove_stale(folder: Path, source: str) -> None:
    """Remove what is of no use any more.

    What this version or earlier ones made of ``source`` (it has changed since, or the layout has),
    what was made of files that are gone, and drafts whose maker must have died. What a later
    version made stays: another checkout uses it.
    """
    for other in folder.parent.iterdir():
        if other == folder:
            continue
        try:
            if other.name.startswith(_DRAFT):
                stale = time.time() - other.stat().st_mtime > _DRAFT_LIFE_S
            else:
                index = json.loads((other / "index.json").read_text(encoding="utf-8"))
                made_of = Path(str(index.get("source")).partition(" with ")[0])
                is_older = index.get("source") == source and index.get("version", 0) <= VERSION
                stale = is_older or (made_of.is_absolute() and not made_of.exists())
        except (OSError, ValueError, AttributeError):
            continue
        if stale:
            shutil.rmtree(other, ignore_errors=True)


def _write_entry(entry: Entry, checkpoint: Checkpoint, out: IO[bytes]) -> dict[str, Any]:
    if entry.kind == "plain":
        values = torch.from_numpy(dense_entry(entry, checkpoint))
        return {"kind": "plain", "values": _append(values, out)}
    groups = quantised_entry(entry, checkpoint)
    codes, scales = torch.from_numpy(groups.codes), torch.from_numpy(groups.scales)
    if entry.kind == "rows":
        return {"kind": "rows", "codes": _append(codes, out), "scales": _append(scales, out)}
    offsets = None if groups.offsets is None else torch.from_numpy(groups.offsets)
    packed = pack_quantized(codes, scales, groups.bits, offsets=offsets)
    return {
        "kind": "matrix",
        "out_features": packed.out_features,
        "in_features": packed.in_features,
        "data": _append(packed.data, out),
        "scales": _append(packed.scales, out),
    }


def _append(values: torch.Tensor, out: IO[bytes]) -> dict[str, Any]:
    out.write(b"\0" * (-out.tell() % _ALIGNMENT))
    offset = out.tell()
    array = np.ascontiguousarray(values.numpy())
    out.write(array.data)
    return {"offset": offset, "dtype": str(array.dtype), "shape": list(array.shape)}


def _map(folder: Path, plan: Sequence[Entry]) -> dict[str, Parameter] | None:
    """The parameters in ``folder``, or None if it is absent, damaged or of another version."""
    binary = folder / "weights.bin"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        size = binary.stat().st_size
        if index["version"] != VERSION or index["size"] != size:
            return None
        parameters = index["parameters"]
        if list(parameters) != [entry.target for entry in plan]:
            return None
        # Private pages: shared with the page cache until written, and nobody writes.
        mapped = torch.from_file(str(binary), shared=False, size=size, dtype=torch.uint8)
        return {name: _parameter(mapped, parts) for name, parts in parameters.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _parameter(mapped: torch.Tensor, parts: dict[str, Any]) -> Parameter:
    if parts["kind"] == "plain":
        return _view(mapped, parts["values"])
    if parts["kind"] == "rows":
        return QuantisedRows(_view(mapped, parts["codes"]), _view(mapped, parts["scales"]))
    return PackedWeight(
        data=_view(mapped, parts["data"]),
        scales=_view(mapped, parts["scales"]),
        out_features=parts["out_features"],
        in_features=parts["in_features"],
    )


def _view(mapped: torch.Tensor, where: dict[str, Any]) -> torch.Tensor:
    dtype = _DTYPES[where["dtype"]]
    count = int(np.prod(where["shape"])) * dtype.itemsize
    begin = where["offset"]
    return mapped[begin : begin + count].view(dtype).view(where["shape"])
