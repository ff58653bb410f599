"""Where models lie in the store, and whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from omni.errors import ModelError
from omni.store.hub import HubModel
from omni.store.manifest import MANIFEST, File, Manifest

CHUNK_BYTES = 2**20


def folder(name: str, home: Path) -> Path:
    """Where the model ``name`` lies or would lie."""
    return home / "models" / name


def missing_files(name: str, home: Path, manifest: Manifest = MANIFEST) -> tuple[File, ...]:
    """The files of ``name`` that are not there at their full size.

    A quick check: only whole, verified files are ever renamed into place, so size tells.

    Raises:
        ModelError: no such model in the manifest.
    """

    at = folder(name, home)
    return tuple(file for file in manifest.get(name).files if _size(at / file.path) != file.size)


def _size(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def is_present(name: str, home: Path, manifest: Manifest = MANIFEST) -> bool:
    """Whether all files of ``name`` are in the store."""
    return not missing_files(name, home, manifest)


def path(name: str, home: Path, manifest: Manifest = MANIFEST) -> Path:
    """The folder of the model ``name`` in the store.

    Raises:
        ModelError: no such model, or it has not been fetched, or not in full; the message says what
            to do.
    """
    if missing := missing_files(name, home, manifest):
        file, at = missing[0], folder(name, home) / missing[0].path
        if (size := _size(at)) is not None:
            raise ModelError(
                f"{at} has {size} bytes, expected {file.size}; "
                f"fetch it again with `omni fetch {name}`"
            )
        raise ModelError(
            f"{name} is not in the model store ({file.path} is missing in "
            f"{folder(name, home)}); run `omni fetch {name}`"
        )
    return folder(name, home)


def find(
    name_or_path: str,
    home: Path,
    manifest: Manifest = MANIFEST,
    *,
    role: str | None = None,
    is_hashed: bool = False,
) -> Path:
    """What a setting means: a model's name, a path to one's own file or folder, a name of the hub.

    Returns the model's folder in the store, or the path. A name of the manifest always wins, then
    what exists; anything else with a separator or a suffix is a name of the hub if it can be one.

    ``is_hashed`` compares the files of the manifest's model with their sha256: for those that are
    small (a second per 400 MB) and whose damage would show in nothing but what they say.

    Raises:
        ModelError: neither a name nor an existing path, a model of another role than ``role``, one
            not fetched yet, or a damaged one.
    """
    if name_or_path in manifest.models:
        model = manifest.get(name_or_path, role)
        at = path(model.name, home, manifest)
        for file in model.files if is_hashed else ():
            if sha256_of(at / file.path) != file.sha256:
                # Without --verify a file of the right size is taken to be there.
                raise ModelError(
                    f"{at / file.path} is damaged: run `omni fetch --verify {model.name}`"
                )
        return at
    own = Path(name_or_path).expanduser()
    if own.exists():
        if role == "backbone" and own.is_dir() and not _may_hold_a_model(own):
            raise ModelError(
                f"{own} holds no model; a model's folder has config.json with *.safetensors, "
                "or one *.gguf"
            )
        return own
    on_hub = HubModel.of(name_or_path)
    if on_hub is not None and on_hub.is_present(home):
        return on_hub.path(home)
    if on_hub is not None:
        raise ModelError(
            f"{name_or_path} is neither a file or folder here nor fetched from the hub; "
            f"run `omni fetch {name_or_path}`"
        )
    if own.parent != Path() or own.suffix in {".gguf", ".bin", ".onnx", ".safetensors"}:
        raise ModelError(f"there is no file or folder {own}")
    known = manifest.get(name_or_path, role)  # raises, naming the nearest model
    return path(known.name, home, manifest)


def _may_hold_a_model(folder: Path) -> bool:
    return (folder / "config.json").exists() or any(folder.glob("*.gguf"))


def read_chunks(file: Path, num_bytes: int | None = None) -> Iterator[bytes]:
    """The first ``num_bytes`` of ``file`` (all of it by default), in pieces of at most 1 MiB."""
    left = num_bytes if num_bytes is not None else file.stat().st_size
    with file.open("rb") as stream:
        while left > 0 and (chunk := stream.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    for chunk in read_chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def remove_corrupt(name: str, home: Path, manifest: Manifest = MANIFEST) -> tuple[str, ...]:
    """Hash every file of ``name`` that is in the store; delete those that are not as published.

    Returns the paths that were deleted, relative to the model's folder.
    """
    removed = []
    for file in manifest.get(name).files:
        at = folder(name, home) / file.path
        if at.is_file() and sha256_of(at) != file.sha256:
            at.unlink()
            removed.append(file.path)
    return tuple(removed)
