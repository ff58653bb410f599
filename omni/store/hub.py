"""Models of the Hugging Face hub in the model store: ``org/name``, ``org/name@revision``, or one
GGUF file as ``org/name/FILE.gguf``.

A model lies in ``HOME/models/hub/org--name[@revision]/`` as its own files, and counts as there once
``.whole`` says which commit it is: half a fetch is never taken for a model. The hub's own client
does the talking, so its settings hold (HF_ENDPOINT for a mirror, HF_TOKEN for what is gated).
Called by :mod:`omni.store.paths` (which finds) and :mod:`omni.cli` (which fetches).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni.errors import FetchError
from omni.store.progress import Progress, Silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*?)(?:@([\w][\w.-]*))?(?:/([\w][\w.-]*\.gguf))?")
_WHOLE = ".whole"
_WANTED = re.compile(r"[^/]+\.(?:json|safetensors|jinja)")
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class HubModel:
    """What a name of the hub means; ``file`` is the one GGUF file that is wanted of it."""

    repository: str
    revision: str | None
    file: str | None

    @staticmethod
    def of(name: str) -> HubModel | None:
        """Parse a name; None: it is none of the hub's."""
        found = _ID.fullmatch(name)
        if found is None or ".." in name:
            return None
        return HubModel(found[1], found[2], found[3])

    def folder(self, home: Path) -> Path:
        """Where the model lies or would lie."""
        version = f"@{self.revision}" if self.revision else ""
        return home / "models" / "hub" / (self.repository.replace("/", "--") + version)

    def path(self, home: Path) -> Path:
        """The folder, or the file that is wanted of it."""
        folder = self.folder(home)
        return folder / self.file if self.file else folder

    def is_present(self, home: Path) -> bool:
        """Whether it has been fetched in full."""
        return self._mark(home).exists() and self.path(home).exists()

    def _mark(self, home: Path) -> Path:
        return self.folder(home) / (_WHOLE + (f".{self.file}" if self.file else ""))


def fetch(
    model: HubModel, home: Path, progress: Progress | None = None, *, endpoint: str | None = None
) -> Path:
    """Bring ``model`` into the store and return its path; what is there is not asked for again.

    Large files are compared with the sha256 that the hub states. ``endpoint`` is the hub's address
    (None: the client's own setting).

    Raises:
        FetchError: it could not be brought (one sentence); files that are whole are kept.
    """
    if model.is_present(home):
        return model.path(home)
    # A quarter of a second, and only a fetch needs it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # of whatever the client speaks HTTP with
        OfflineModeIsEnabled,
    )

    shown, folder = progress or Silent(), model.folder(home)
    try:
        info = HfApi(endpoint=endpoint).model_info(
            model.repository, revision=model.revision, files_metadata=True
        )
        files = _chosen(model, info.siblings or [])
        shown.begin(model.repository, sum(file.size or 0 for file in files))
        done = 0
        for file in files:
            _bring(
                model, info.sha or "main", file, folder, _Bar(shown, model, file, done), endpoint
            )
            done += file.size or 0
        model._mark(home).write_text(f"{info.sha}\n", encoding="utf-8")
        shown.end(model.repository)
    except (HTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        raise FetchError(_explain(error, model)) from error
    except OSError as error:
        raise FetchError(f"{model.repository} could not be written to {folder}: {error}") from error
    return model.path(home)


def _chosen(model: HubModel, siblings: list[RepoSibling]) -> list[RepoSibling]:
    """The files of a repository that this build reads."""
    names = [file.rfilename for file in siblings]
    if model.file is not None:
        chosen = [file for file in siblings if file.rfilename == model.file]
        if not chosen:
            raise FetchError(
                f"{model.repository} has no {model.file}; its GGUF files: {_ggufs(names)}"
            )
        return chosen
    chosen = [file for file in siblings if _WANTED.fullmatch(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in chosen):
        raise FetchError(
            f"{model.repository} has no *.safetensors; of a GGUF repository name one file, as "
            f"{model.repository}/FILE.gguf: {_ggufs(names)}"
        )
    return chosen


def _ggufs(names: list[str]) -> str:
    return ", ".join(sorted(name for name in names if name.endswith(".gguf"))) or "none"


def _bring(
    model: HubModel,
    commit: str,
    file: RepoSibling,
    folder: Path,
    bar: _Bar,
    endpoint: str | None,
) -> None:
    """Download one file of ``commit`` and compare it with what the hub says of it."""
    from huggingface_hub import hf_hub_download

    path = Path(
        hf_hub_download(
            model.repository,
            file.rfilename,
            revision=commit,
            local_dir=folder,
            endpoint=endpoint,
            tqdm_class=bar.tqdm_class(),
        )
    )
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        path.unlink()
        raise FetchError(f"{file.rfilename} came with {size} bytes, expected {file.size}")
    if file.lfs is not None and _sha256(path) != file.lfs.sha256:
        path.unlink()
        raise FetchError(
            f"{file.rfilename} of {model.repository} is not what its sha256 says; fetch it again"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _Bar:
    """Passes what the hub's client would draw on to our own progress."""

    def __init__(self, shown: Progress, model: HubModel, file: RepoSibling, done: int) -> None:
        self._shown = shown
        self._name, self._doing = model.repository, file.rfilename
        self._done = done

    def add(self, num_bytes: float) -> None:
        self._done += int(num_bytes)
        self._shown.update(self._name, self._done, self._doing)

    def tqdm_class(self) -> Any:
        """A bar of the client's kind that draws nothing."""
        from tqdm import tqdm

        bar = self

        class Quiet(tqdm):  # type: ignore[misc]  # it has no types
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                bar.add(n or 0)
                return None

        return Quiet


def _explain(error: Exception, model: HubModel) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = model.repository
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: accept its licence on its page, then set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no model {name}, or it is private and HF_TOKEN is not set"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {model.revision}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{name} is not in the model store and HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code if error.response is not None else "no"
        return f"the hub answered {code} for {name}; try again later"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the hub cannot be reached for {name}: {first}"
