from __future__ import annotations

from pathlib import Path

import pytest
from omni_encoders.vocabulary import Vocabulary
from tokenizers import Tokenizer

from omni.errors import ModelError


@pytest.fixture(scope="module")
def folder(models: Path) -> Path:
    return models / "whisper-base"


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return Vocabulary(folder / "tokenizer.json")


def encode(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        (" He paid $3.50, didn't he?", "en", [" He", " paid", " $3.50,", " didn't", " he?"]),
        ("No leading space", "en", ["No", " leading", " space"]),
        (" Straße über Köln", "de", [" Straße", " über", " Köln"]),
        ("今日は", "ja", ["今", "日", "は"]),
    ],
)
def test_tokens_become_words_that_concatenate_to_the_text(
    vocabulary: Vocabulary, folder: Path, text: str, language: str, words: list[str]
) -> None:
    tokens = encode(folder, text)
    slices = vocabulary.words(tokens, language)
    found = [vocabulary.text(tokens[piece]) for piece in slices]
    assert "".join(found) == vocabulary.text(tokens) == text
    if language == "ja":  # a token may hold several whole characters, never half of one
        assert "�" not in "".join(found)
    else:
        assert found == words


@pytest.mark.weights
def test_special_tokens_have_no_text(vocabulary: Vocabulary) -> None:
    special = [vocabulary.start, vocabulary.end, vocabulary.no_timestamps, vocabulary.transcribe]
    assert vocabulary.text(special) == ""
    assert vocabulary.languages["en"] == vocabulary.start + 1
    assert len(vocabulary.languages) == 99


@pytest.mark.weights
def test_half_a_character_is_replaced_not_raised(vocabulary: Vocabulary, folder: Path) -> None:
    tokens = encode(folder, " 🦊")
    assert len(tokens) > 1
    assert "�" in vocabulary.text(tokens[:-1])


def test_corrupt_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": ')
    with pytest.raises(ModelError, match="not a readable tokenizer"):
        Vocabulary(path)
