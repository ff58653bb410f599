"""English text to phonemes with the alignment of phonemes to characters.

Wraps hibari's grapheme-to-phoneme pipeline (normalizer, tokenizer, tagger, lexicon, net for unknown
words); Kokoro was trained on the same alphabet, so both decoders share it. Called by
:mod:`omni.speech.stream`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import hibari
from hibari.g2p import G2P
from hibari.g2p.normalize import normalize

ASSETS = Path(hibari.__file__).parent / "assets"
MAX_PHONEMES = 400
"""Longest input of one synthesis: hibari's own limit, below Kokoro's 510."""

PUNCTUATION = frozenset(';:,.!?—…"()“” ')
PAD_ID = 0


@dataclass(frozen=True, slots=True)
class Phrase:
    """At most :data:`MAX_PHONEMES` phonemes, all of the vocabulary.

    ``words``: pairs (phonemes, characters): that many characters of the text have been said when
    that many phonemes of this phrase have. Both grow.
    """

    phonemes: str
    words: tuple[tuple[int, int], ...]


class Phonemizer:
    """Loads the lexicon once (about 0.4 s, 60 MB); calls are pure."""

    def __init__(self) -> None:
        self._g2p = G2P()
        vocab = json.loads((ASSETS / "vocab.json").read_text(encoding="utf-8"))
        self._vocab = cast(dict[str, int], vocab)

    def ids(self, phonemes: str) -> list[int]:
        """Model inputs: one id per phoneme between two pads."""
        return [PAD_ID, *(self._vocab[c] for c in phonemes), PAD_ID]

    def phrases(self, text: str) -> Iterator[Phrase]:
        """Phonemes of one clause of speakable text, split where it is too long for one synthesis.

        Yields nothing when the text has nothing to say. ``words`` count characters of ``text``.
        """
        phonemes, words, done = "", list[tuple[int, int]](), 0
        for word, num_chars in self._words(text):
            if phonemes and len(phonemes) + len(word) > MAX_PHONEMES:
                yield Phrase(phonemes.rstrip(), tuple(words))
                phonemes, words = "", []
            for begin in range(0, len(word), MAX_PHONEMES):  # a "word" of hundreds of letters
                if begin:
                    yield Phrase(phonemes, ())
                phonemes = (phonemes if not begin else "") + word[begin : begin + MAX_PHONEMES]
            said = len(phonemes.rstrip("".join(PUNCTUATION)))
            if said > (words[-1][0] if words else 0) and num_chars > done:
                words.append((said, num_chars))
                done = num_chars
        if phonemes.rstrip("".join(PUNCTUATION)):
            yield Phrase(phonemes.rstrip(), tuple(words))

    def _words(self, text: str) -> Iterator[tuple[str, int]]:
        """Phonemes of each word (with trailing space) and the characters of ``text`` it ends at."""
        said = cast(str, normalize(text))
        ends = _align_words(text, said)
        index, phonemes = 0, ""
        for token in self._g2p.phonemize_tokens(self._g2p.tokenize(said)):
            phonemes += "".join(c for c in token.phonemes or "" if c in self._vocab)
            if token.whitespace:
                yield phonemes + " ", ends[min(index, len(ends) - 1)]
                index, phonemes = index + 1, ""
        if phonemes:
            yield phonemes, ends[-1]


def _align_words(text: str, said: str) -> list[int]:
    """For each word of ``said`` (``text`` as the normalizer reads it): where it ends in ``text``.

    Words that both have are exact; a rewritten run ("5 km" as "5 kilometers") is proportional.
    """
    spans = _word_ends(text)
    old = text.replace("’", "'").split()
    new = said.split()
    ends = [0] * len(new)
    for _, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for j in range(j1, j2):
            i = i1 + (j - j1 + 1) * (i2 - i1) // (j2 - j1)
            ends[j] = spans[i - 1] if i else 0
    return ends


def _word_ends(text: str) -> list[int]:
    ends = []
    position = 0
    for word in text.split():
        position = text.index(word, position) + len(word)
        ends.append(position)
    return ends
