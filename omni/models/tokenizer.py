"""Text to token ids and back, from the vocabulary that a GGUF file carries.

Byte-level BPE through the ``tokenizers`` library. Special tokens live outside of the BPE, so text
can never become one: a template puts their ids between texts (:meth:`Tokenizer.encode_pieces`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from omni.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's llama_token_type
_UNUSED = 5

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_QWEN3_5_PATTERN = (  # combining marks belong to words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2_split(pattern: str = _QWEN2_PATTERN) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _qwen3_5_split() -> pre_tokenizers.PreTokenizer:
    return _qwen2_split(_QWEN3_5_PATTERN)


def _smollm_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


_KINDS = {
    "qwen2": (_qwen2_split, True),
    "qwen35": (_qwen3_5_split, True),
    "smollm": (_smollm_split, False),
}
"""``tokenizer.ggml.pre`` -> how text is split, and whether it is brought to NFC first."""


class Tokenizer:
    """Encodes and decodes; immutable and safe to share between threads.

    ``special_ids`` maps each special token's text to its id; those in ``hidden_ids`` (turn marks
    and the like) are no part of decoded text, the others (``<tool_call>``) are.
    ``vocab_size`` counts all tokens.
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        tokens: Sequence[str],
        special_ids: Mapping[str, int],
        hidden_ids: Iterable[int],
    ) -> None:
        self._bpe = bpe
        self.special_ids = dict(special_ids)
        self.hidden_ids = frozenset(hidden_ids)
        self.vocab_size = len(tokens)
        self._tokens = tokens
        self._special_text = {index: text for text, index in special_ids.items()}
        self._byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from a GGUF file's ``tokenizer.ggml.*`` fields.

        Raises:
            ModelError: a field is missing or fits no other, or the tokenizer is of an unknown kind.
        """
        try:
            kind, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
            tokens: list[str] = metadata["tokenizer.ggml.tokens"]
            merges: list[str] = metadata["tokenizer.ggml.merges"]
            types: list[int] = metadata["tokenizer.ggml.token_type"]
        except KeyError as error:
            raise ModelError(f"the model file has no {error} field: no tokenizer") from None
        if kind != "gpt2" or pre not in _KINDS:
            raise ModelError(
                f"tokenizer {kind}/{pre} is not known; known: gpt2 with {', '.join(_KINDS)}"
            )
        if len(types) != len(tokens):
            raise ModelError(f"the model file has {len(tokens)} tokens but {len(types)} types")
        special = {
            token: index
            for index, token in enumerate(tokens)
            if types[index] in (_CONTROL, _USER_DEFINED)
        }
        vocab = {token: index for index, token in enumerate(tokens) if types[index] != _UNUSED}
        parted = [merge.partition(" ") for merge in merges]
        pairs = [(left, right) for left, _, right in parted]
        try:
            bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
        except Exception as error:  # the library raises Exception itself
            raise ModelError(
                f"the model file's merges do not fit its vocabulary ({error}); fetch it again"
            ) from error
        split, to_nfc = _KINDS[pre]
        bpe.pre_tokenizer = split()
        bpe.decoder = decoders.ByteLevel()
        if to_nfc:
            bpe.normalizer = normalizers.NFC()
        hidden = [index for index in special.values() if types[index] == _CONTROL]
        used = [token if types[index] != _UNUSED else "" for index, token in enumerate(tokens)]
        return cls(bpe, used, special, hidden)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Build from a Hugging Face ``tokenizer.json``; its added tokens become the special ones.

        Raises:
            ModelError: the file is missing or not a byte-level BPE tokenizer.
        """
        if not path.exists():
            raise ModelError(
                f"{path.parent} has no {path.name}; copy {path.name} beside the weights"
            )
        try:
            bpe = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ModelError(
                f"cannot read the tokenizer {path}: {error}; fetch it again"
            ) from error
        decoder = bpe.get_added_tokens_decoder()
        added = {token.content: index for index, token in decoder.items()}
        hidden = [index for index, token in decoder.items() if token.special]
        size = max(bpe.get_vocab(with_added_tokens=True).values()) + 1
        tokens = [bpe.id_to_token(index) or "" for index in range(size)]
        # Added tokens are matched in any text, so the BPE is rebuilt without them.
        plain = tokenizers.Tokenizer(bpe.model)
        plain.pre_tokenizer, plain.decoder = bpe.pre_tokenizer, decoders.ByteLevel()
        if bpe.normalizer is not None:
            plain.normalizer = bpe.normalizer
        return cls(plain, tokens, added, hidden)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: what looks like a special token stays text."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, pieces: Iterable[str | int]) -> list[int]:
        """Ids of a template's pieces: a number is a special token, text is plain text.

        Neighbouring texts are encoded as one.
        """
        ids: list[int] = []
        plain: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                plain.append(piece)
                continue
            if plain:
                ids += self.encode("".join(plain))
                plain.clear()
            ids.append(piece)
        return ids + self.encode("".join(plain)) if plain else ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ``ids``; broken UTF-8 becomes U+FFFD; ``special`` shows hidden tokens too."""
        data = b"".join(self.token_bytes(index, special=special) for index in ids)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int, *, special: bool = False) -> bytes:
        """UTF-8 bytes (perhaps a part of a character) of one token.

        Nothing for an id past the vocabulary: models have more embeddings than there are tokens
        (a round number of them), and one may be sampled.

        Raises:
            ValueError: ``index`` is negative.
        """
        if index < 0:
            raise ValueError(f"token {index} is negative")
        if index >= self.vocab_size:
            return b""
        if index in self._special_text:
            shown = special or index not in self.hidden_ids
            return self._special_text[index].encode() if shown else b""
        return bytes(self._byte_of[char] for char in self._tokens[index])


class StreamDecoder:
    """Decodes tokens one at a time and never emits half a character."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """Text that token ``index`` completes; often a word, sometimes nothing."""
        return self._utf8.decode(self._tokenizer.token_bytes(index, special=self._special))

    def flush(self) -> str:
        """What was held back: U+FFFD if the tokens ended inside a character."""
        return self._utf8.decode(b"", final=True)


def word_cuts(text: str) -> list[int]:
    """Where ``text`` may be cut so that the tokens of the parts are the tokens of the whole.

    Those are the places before a single space between two characters that are not white space and
    not combining marks: no known pre-tokeniser matches across them, and NFC does not either.
    """
    return [
        at
        for at in range(1, len(text) - 1)
        if text[at] == " " and text[at - 1].isalnum() and text[at + 1].isalnum()
    ]


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(256 + number) for number, byte in enumerate(hidden)})
    return [table[byte] for byte in range(256)]
