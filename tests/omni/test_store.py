"""The manifest and the store's folders; no package is fetched here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from package_index import manifest_of, model_file

from omni import store
from omni.config import Config, load
from omni.config import home as omni_home
from omni.errors import ModelError
from omni.store.paths import sha256_of

HASH = re.compile(r"[0-9a-f]{64}")
SOURCE = re.compile(r"pypi:[a-z0-9-]+==[0-9.]+|npm:[@a-z0-9/-]+@[0-9.]+")
SMALL = manifest_of("tiny", model_file("sub/model.bin", ("pypi:tiny==1.0", "tiny/m.bin", b"abc")))


def put(home: Path, name: str, path: str, data: bytes) -> Path:
    at = store.folder(name, home) / path
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(data)
    return at


def test_every_entry_names_source_size_hash_and_licence() -> None:
    for model in store.MANIFEST:
        assert model.licence in {"Apache-2.0", "MIT", "BSD-2-Clause"}, model.name
        assert model.about, model.name
        assert model.without, model.name
        for file in model.files:
            assert HASH.fullmatch(file.sha256), file.path
            assert sum(part.size for part in file.parts) == file.size > 0
            for part in file.parts:
                assert SOURCE.fullmatch(part.source), part.source
                assert HASH.fullmatch(part.sha256), part.member
                assert store.MANIFEST.download_bytes[part.source] > 0


def test_a_files_parts_come_from_packages_in_their_order() -> None:
    for model in store.MANIFEST:
        for file in model.files:
            packages = [model.sources.index(part.source) for part in file.parts]
            assert packages == sorted(set(packages)), file.path


def test_defaults_are_what_the_default_settings_name() -> None:
    config = Config().model
    assert set(store.MANIFEST.defaults) == {
        config.backbone,
        config.recogniser,
        config.end_of_turn,
        config.detector,
        config.classifier,
    }


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"did you mean whisper-base\?"):
        store.MANIFEST.get("wisper-base")
    with pytest.raises(ModelError, match=r"known: qwen2\.5-coder-0\.5b, "):
        store.MANIFEST.get("zzzz")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("whisper", "whisper-base or whisper-tiny.en"),
        ("Kokoro-82M", "kokoro-82m"),
        ("qwen", "qwen2.5-coder-0.5b or qwen2.5-coder-1.5b"),
        ("smolm2", "smollm2-135m"),
    ],
)
def test_near_misses_name_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(ModelError) as raised:
        store.MANIFEST.get(name)
    assert str(raised.value) == f"no model is called {name!r}; did you mean {meant}?"


def test_a_model_of_another_role_is_refused_with_those_of_the_role(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        store.find("whisper-base", tmp_path, role="backbone")
    assert str(raised.value) == (
        "whisper-base is a recogniser, not a backbone; "
        "choose from qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, smollm2-135m"
    )
    with pytest.raises(ModelError, match=r"no recogniser is called 'smollm2'; known: whisper-base"):
        store.find("smollm2", tmp_path, role="recogniser")
    with pytest.raises(ModelError, match=r"run `omni fetch smollm2-135m`"):
        store.find("smollm2-135m", tmp_path, role="backbone")


@pytest.mark.parametrize("part", ["backbone", "recogniser", "end_of_turn"])
def test_settings_take_models_of_their_own_role_only(part: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # else it is no backbone of one's own
    from omni.assistant import embedded
    from omni.parts import ThreadParts

    values = {"home": str(tmp_path), f"model.{part}": "kokoro-82m"}
    values |= {} if part == "backbone" else {"model.backbone": str(tmp_path)}
    values |= {} if part != "end_of_turn" else {"model.recogniser": str(tmp_path)}
    with pytest.raises(ModelError, match=r"^kokoro-82m is a speech decoder, not an? "):
        embedded.build(load(None, values), ThreadParts())


def test_path_says_which_command_brings_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny is not in the model store .*run `omni fetch tiny`"):
        store.path("tiny", tmp_path, SMALL)


def test_a_file_of_another_size_is_not_present(tmp_path: Path) -> None:
    put(tmp_path, "tiny", "sub/model.bin", b"ab")
    assert not store.is_present("tiny", tmp_path, SMALL)
    put(tmp_path, "tiny", "sub/model.bin", b"abc")
    assert store.is_present("tiny", tmp_path, SMALL)
    assert store.path("tiny", tmp_path, SMALL) == tmp_path / "models" / "tiny"


def test_path_says_how_large_a_file_of_another_size_is_and_should_be(tmp_path: Path) -> None:
    at = put(tmp_path, "tiny", "sub/model.bin", b"ab")
    with pytest.raises(ModelError) as raised:
        store.path("tiny", tmp_path, SMALL)
    assert str(raised.value) == (
        f"{at} has 2 bytes, expected 3; fetch it again with `omni fetch tiny`"
    )


def test_find_takes_a_name_or_a_path_of_ones_own(tmp_path: Path) -> None:
    put(tmp_path, "tiny", "sub/model.bin", b"abc")
    own = tmp_path / "mine.gguf"
    own.write_bytes(b"GGUF")
    assert store.find("tiny", tmp_path, SMALL) == tmp_path / "models" / "tiny"
    assert store.find(str(own), tmp_path, SMALL) == own
    with pytest.raises(ModelError, match="there is no file or folder"):
        store.find(str(tmp_path / "other.gguf"), tmp_path, SMALL)
    with pytest.raises(ModelError, match=r"no model is called 'tinny'; did you mean tiny\?"):
        store.find("tinny", tmp_path, SMALL)


def test_a_damaged_file_of_the_right_size_is_refused_where_files_are_hashed(tmp_path: Path) -> None:
    at = put(tmp_path, "tiny", "sub/model.bin", b"abd")
    assert store.find("tiny", tmp_path, SMALL) == tmp_path / "models" / "tiny"  # by size alone
    with pytest.raises(ModelError) as raised:
        store.find("tiny", tmp_path, SMALL, is_hashed=True)
    assert str(raised.value) == f"{at} is damaged: run `omni fetch --verify tiny`"
    at.write_bytes(b"abc")
    assert store.find("tiny", tmp_path, SMALL, is_hashed=True) == tmp_path / "models" / "tiny"
    assert store.find(str(at), tmp_path, SMALL, is_hashed=True) == at  # one's own


@pytest.mark.parametrize("damaged", ["nanodet-416", "efficientnet-lite0"])
def test_damaged_eyes_do_not_open(tmp_path: Path, damaged: str) -> None:
    from omni.assistant import embedded

    own = tmp_path / "own"  # stands for the other part
    own.mkdir()
    for file in store.MANIFEST.get(damaged).files:
        put(tmp_path, damaged, file.path, bytes(file.size))
    role = store.MANIFEST.get(damaged).role
    values = {"home": str(tmp_path), "model.detector": str(own), "model.classifier": str(own)}
    eyes = embedded.open_eyes(load(None, values | {f"model.{role}": damaged}))
    with pytest.raises(ModelError, match=f"is damaged: run `omni fetch --verify {damaged}`"):
        eyes.look(np.zeros((8, 8, 3), dtype=np.uint8), 0, None)


def test_remove_corrupt_deletes_only_what_is_damaged(tmp_path: Path) -> None:
    two = manifest_of(
        "two",
        model_file("good.bin", ("pypi:two==1.0", "two/good.bin", b"good")),
        model_file("bad.bin", ("pypi:two==1.0", "two/bad.bin", b"fine")),
    )
    good, bad = (
        put(tmp_path, "two", "good.bin", b"good"),
        put(tmp_path, "two", "bad.bin", b"fIne"),
    )
    assert store.is_present("two", tmp_path, two)  # by size alone
    assert store.remove_corrupt("two", tmp_path, two) == ("bad.bin",)
    assert good.exists()
    assert not bad.exists()


@pytest.mark.weights
def test_small_default_files_in_the_store_are_as_published() -> None:
    home = omni_home(Config())
    for name in ("smart-turn-v3", "whisper-base"):
        for file in store.MANIFEST.get(name).files:
            if file.size < 10_000_000:  # the large ones are checked by `omni fetch --verify`
                assert sha256_of(store.path(name, home) / file.path) == file.sha256
