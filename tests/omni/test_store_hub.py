"""Models of the hub: fetched whole and checked, found by name, refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_hub import COMMIT, ModelHub
from tiny_models import Driver
from tiny_qwen3_5 import make, make_tokenizer

from omni import store
from omni.errors import FetchError, ModelError
from omni.models import load
from omni.store import hub as hub_store
from omni.store.hub import HubModel

NAME = "someone/tiny-model"
FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 20,
    "model-00002-of-00002.safetensors": b"short",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b"{}" * 1000,
    "README.md": b"read me",
    "original/consolidated.safetensors": b"another copy",
    "pytorch_model.bin": b"the same again",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    served = ModelHub()
    served.files[NAME] = dict(FILES)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield served
    served.close()


def named(name: str) -> HubModel:
    model = HubModel.of(name)
    assert model is not None
    return model


class Recorded:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.ended: list[str] = []

    def begin(self, name: str, total_bytes: int) -> None:
        self.total = total_bytes

    def update(self, name: str, done_bytes: int, doing: str) -> None:
        assert self.done <= done_bytes <= self.total
        self.done = done_bytes

    def end(self, name: str) -> None:
        self.ended.append(name)


def test_a_model_is_fetched_once_and_then_found_by_its_name(hub: ModelHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"omni fetch {NAME}"):
        store.find(NAME, tmp_path)
    shown = Recorded()
    folder = hub_store.fetch(named(NAME), tmp_path, shown, endpoint=hub.url)
    assert folder == store.find(NAME, tmp_path)
    there = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert there.pop(".whole") == f"{COMMIT}\n".encode()
    wanted = {name for name in FILES if name.endswith(("json", "safetensors")) and "/" not in name}
    assert there == {name: FILES[name] for name in wanted}
    assert shown.done == shown.total == sum(len(data) for data in there.values())
    assert shown.ended == [NAME]
    hub.requested.clear()
    hub_store.fetch(named(NAME), tmp_path, endpoint="http://127.0.0.1:9")  # asks nobody
    assert hub.requested == []


def test_a_revision_lies_beside_the_newest(hub: ModelHub, tmp_path: Path) -> None:
    folder = hub_store.fetch(named(NAME), tmp_path, endpoint=hub.url)
    other = hub_store.fetch(named(f"{NAME}@v2"), tmp_path, endpoint=hub.url)
    assert folder != other
    assert store.find(f"{NAME}@v2", tmp_path) == other


def test_one_file_of_a_gguf_repository_is_fetched(hub: ModelHub, tmp_path: Path) -> None:
    hub.files["someone/tiny-GGUF"] = {"a-q4.gguf": b"4" * 2000, "a-q8.gguf": b"8" * 2000}
    name = "someone/tiny-GGUF/a-q8.gguf"
    path = hub_store.fetch(named(name), tmp_path, endpoint=hub.url)
    assert path.read_bytes() == b"8" * 2000
    assert store.find(name, tmp_path) == path
    assert hub.requested == ["a-q8.gguf"]
    with pytest.raises(ModelError, match="omni fetch"):
        store.find("someone/tiny-GGUF/a-q4.gguf", tmp_path)


def test_half_a_fetch_is_no_model_and_is_gone_on_with(hub: ModelHub, tmp_path: Path) -> None:
    large = "model-00001-of-00002.safetensors"
    hub.lying.add(large)
    with pytest.raises(FetchError, match="is not what its sha256 says"):
        hub_store.fetch(named(NAME), tmp_path, endpoint=hub.url)
    with pytest.raises(ModelError, match="omni fetch"):
        store.find(NAME, tmp_path)
    hub.lying.clear()
    hub.requested.clear()
    folder = hub_store.fetch(named(NAME), tmp_path, endpoint=hub.url)
    assert (folder / large).read_bytes() == FILES[large]
    assert "config.json" not in hub.requested  # that one was whole


def test_a_connection_that_breaks_is_taken_up_again(hub: ModelHub, tmp_path: Path) -> None:
    large = "model-00001-of-00002.safetensors"
    hub.broken.add(large)
    folder = hub_store.fetch(named(NAME), tmp_path, endpoint=hub.url)
    assert (folder / large).read_bytes() == FILES[large]
    assert hub.requested.count(large) == 2


def sentence(name: str, home: Path, endpoint: str) -> str:
    with pytest.raises(FetchError) as caught:
        hub_store.fetch(named(name), home, endpoint=endpoint)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_the_hub_refuses_says_what_to_do(hub: ModelHub, tmp_path: Path) -> None:
    hub.files["someone/closed"] = dict(FILES)
    hub.gated.add("someone/closed")
    hub.files["someone/tiny-GGUF"] = {"a-q4.gguf": b"4", "b.bin": b""}
    for name, expected in (
        ("nobody/nothing", "the hub has no model nobody/nothing"),
        ("someone/closed", "accept its licence"),
        (f"{NAME}@v9", "has no revision v9"),
        ("someone/tiny-GGUF", "name one file, as someone/tiny-GGUF/FILE.gguf: a-q4.gguf"),
        ("someone/tiny-GGUF/c.gguf", "has no c.gguf; its GGUF files: a-q4.gguf"),
    ):
        assert expected in sentence(name, tmp_path, hub.url)


def test_a_hub_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    assert "the hub cannot be reached" in sentence(NAME, tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "/a/b", "a/../b", "./a", "a/b/c.safetensors", "~/model", "a/b@"]
)
def test_what_is_no_name_of_the_hub_is_none(name: str) -> None:
    assert HubModel.of(name) is None


def test_a_path_that_exists_wins_over_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someone" / "tiny-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert store.find(NAME, tmp_path) == Path(NAME)


def test_a_fetched_model_answers(hub: ModelHub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make("vision", 2, vocab_size=960).save_pretrained(source, max_shard_size="500KB")
    make_tokenizer().save_pretrained(source)
    hub.files["someone/answers"] = {file.name: file.read_bytes() for file in source.iterdir()}
    hub_store.fetch(named("someone/answers"), tmp_path, endpoint=hub.url)
    model = load(store.find("someone/answers", tmp_path), home=tmp_path)
    ids = model.tokenizer.encode("What can the function do?")
    assert Driver(model.backbone).step([ids]).shape == (len(ids), 960)


def test_the_command_fetches_by_name_from_the_mirror_in_the_environment(
    hub: ModelHub, tmp_path: Path
) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "OMNI_HOME": str(tmp_path)}
    for num_asked in (1, 0):  # the second time it is there
        hub.requested.clear()
        done = subprocess.run(
            [sys.executable, "-m", "omni", "fetch", NAME],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"In the model store: {NAME}.\n"
        assert hub.requested.count("config.json") == num_asked
    failed = subprocess.run(
        [sys.executable, "-m", "omni", "fetch", "nobody/nothing"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("omni fetch: the hub has no model nobody/nothing")
