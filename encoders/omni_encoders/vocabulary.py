"""Whisper's tokens: bytes of each token, special tokens, words. Used by the recogniser only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from omni.errors import ModelError

# Written without spaces between words: every whole character counts as a word.
SPACELESS_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes are themselves, the rest follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class Vocabulary:
    """Token ids of one Whisper checkpoint."""

    def __init__(self, path: Path) -> None:
        """Read ``tokenizer.json``.

        Raises:
            ModelError: missing or unreadable file, or one without Whisper's special tokens.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path} is not a readable tokenizer: {error}; run: omni fetch") from (
                error
            )
        self._path = path
        ids = tokenizer.get_vocab()
        self.end = self._special(ids, "<|endoftext|>")
        self.start = self._special(ids, "<|startoftranscript|>")
        self.transcribe = self._special(ids, "<|transcribe|>")
        self.no_timestamps = self._special(ids, "<|notimestamps|>")
        self.no_speech = ids.get("<|nospeech|>", ids.get("<|nocaptions|>"))
        # Languages lie between the start of the transcript and <|translate|>.
        translate = self._special(ids, "<|translate|>")
        names = {i: name for name, i in ids.items() if self.start < i < translate}
        self.languages = {name[2:-2]: i for i, name in sorted(names.items())}
        alphabet = _byte_alphabet()
        self._bytes: dict[int, bytes] = {
            i: bytes(alphabet[char] for char in name) for name, i in ids.items() if i < self.end
        }

    def _special(self, ids: dict[str, int], name: str) -> int:
        if name not in ids:
            raise ModelError(f"{self._path} has no token {name}: not a Whisper tokenizer")
        return ids[name]

    def text(self, tokens: Iterable[int]) -> str:
        """Text of ``tokens``, special ones left out, broken characters replaced."""
        return b"".join(self._bytes.get(t, b"") for t in tokens).decode("utf-8", errors="replace")

    def words(self, tokens: Sequence[int], language: str) -> list[slice]:
        """Slices of ``tokens`` that are words; a word carries its leading space and punctuation."""
        spaceless = language in SPACELESS_LANGUAGES
        starts: list[int] = []
        word = b""
        for i, token in enumerate(tokens):
            piece = self._bytes.get(token, b"")
            fresh = _is_whole(word) if spaceless else piece.startswith(b" ") and word.strip() != b""
            if not starts or (word and fresh):
                starts.append(i)
                word = b""
            word += piece
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def _is_whole(word: bytes) -> bool:
    try:
        word.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
