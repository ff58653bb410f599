"""Speech to text for one window of audio: Whisper, with drafts.

A streaming pass hears nearly the same audio as the pass before it, so its text is given as a
*draft* and verified in one forward pass; only what differs is decoded token by token. The result
is that of decoding without a draft. Decoding is greedy; a careful reading that is unsure of its
words is repeated as a beam search. Called by :mod:`omni_encoders.audio`; knows no streams.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omni.errors import CancelledError, InputError, ModelError
from omni_encoders import checkpoint
from omni_encoders.alignment import FRAME_MS, token_starts
from omni_encoders.beam import Rules, search
from omni_encoders.features import HOP_SAMPLES, SAMPLE_RATE_HZ, log_mel
from omni_encoders.vocabulary import Vocabulary
from omni_encoders.whisper import FRAMES_PER_MEL, MAX_MEL_FRAMES, DecoderState, Heard, Whisper

MIN_WINDOW_S = 10.0
PAD_S = 2.0  # with 1 s of padding Whisper repeats itself endlessly
MAX_AUDIO_S = MAX_MEL_FRAMES * HOP_SAMPLES / SAMPLE_RATE_HZ

_MAX_TOKENS = 224  # half of the decoder's positions, as in openai/whisper
_TOKENS_PER_S = 12.0  # nobody speaks faster: bounds a runaway window
# What it takes to believe that the speech is not English (of 153 noisy English clips none is
# mistaken): the detector's probability, the reading's mean log probability, and that of reading it
# as English, which is as good where Whisper writes the other language under the English token.
_MIN_OTHER_SHARE = 0.5
_LOGPROB_SLACK = 0.2
_MIN_OTHER_LOGPROB = -1.0
_MAX_COMPRESSION_RATIO = 2.4  # above it the text repeats itself (openai/whisper)
_LOOP_REPEATS = {1: 8, 2: 6, 3: 5}  # period in tokens -> repeats that are a loop; longer: 4
_LONGEST_LOOP_TOKENS = 24
_SURE_LOGPROB = -0.2  # mean log probability from which a greedy reading needs no beam search
# How much more probable (mean log probability) another reading must be: one that differs from what
# was read while the user spoke throws away what was computed from it. On 214 clips the word error
# rate is 13.2% with it, 13.0% with any improvement, 15.9% without a search.
_CLEARLY_BETTER_LOGPROB = 0.05
_BEAM_SLACK_TOKENS = 8  # a better reading may be longer than the greedy one by this much
_REJOIN_TOKENS = 6  # how far ahead in a draft decoding may meet it again
_SAMPLES_PER_FRAME = HOP_SAMPLES * FRAMES_PER_MEL


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its leading space and punctuation; times count from the window's start."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float  # geometric mean of its tokens' probabilities
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was recognised in one window. ``tokens`` may be the next pass's draft."""

    tokens: tuple[int, ...]
    text: str
    words: tuple[Word, ...]
    language: str
    no_speech_probability: float
    average_logprob: float
    is_repetitive: bool  # a loop was cut, or the text compresses like one
    num_forward_passes: int  # decoder passes; a fully right draft needs one
    is_settled: bool = True  # a careful reading would be the same


@dataclass(frozen=True, slots=True)
class HeardWindow:
    """An encoded window: what :meth:`Recogniser.hear` returns and :meth:`Recogniser.read` reads."""

    heard: Heard
    num_samples: int


@dataclass(slots=True)
class _Decoded:
    """Tokens decided so far, each with its log probability and alignment row [heads, T]."""

    tokens: list[int]
    logprobs: list[float]
    attention: list[Tensor]
    num_passes: int = 0
    ended: bool = False
    looped: bool = False

    @property
    def average_logprob(self) -> float:
        return sum(self.logprobs) / max(1, len(self.logprobs))


def _never() -> bool:
    return False


class Recogniser:
    """Whisper from a faster-whisper folder. One pass at a time: not for concurrent calls."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """Load ``model.bin``, ``config.json`` and ``tokenizer.json`` of ``folder``.

        ``threads``: torch threads of a pass, set in the thread that runs it; 0 leaves them.

        Raises:
            ModelError: a file is missing, corrupt, or not Whisper's.
        """
        folder = Path(folder)
        self._threads = threads
        config = _Config(folder / "config.json")
        self._vocabulary = Vocabulary(folder / "tokenizer.json")
        arrays = checkpoint.read(folder / "model.bin", spec="WhisperSpec")
        try:
            self._model = Whisper(arrays, config.alignment_heads)
        except ValueError as error:  # the kernels refuse what is not a number
            raise ModelError(
                f"{folder / 'model.bin'} is damaged ({error}); run `omni fetch --verify`"
            ) from error
        size = self._model.vocabulary_size
        self._is_multilingual = size > 51864  # English-only checkpoints have one token fewer
        self._suppressed = _mask(size, config.suppressed)
        # Timestamps are not asked for: nothing above <|notimestamps|> may come.
        self._suppressed[self._vocabulary.no_timestamps :] = -math.inf
        self._suppressed_first = _mask(size, config.suppressed_first)

    @property
    def num_threads(self) -> int:
        return self._threads or torch.get_num_threads()

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self._vocabulary.languages) if self._is_multilingual else ("en",)

    def transcribe(
        self,
        audio: NDArray[np.float32],
        *,
        draft: Sequence[int] = (),
        prefix: Sequence[int] = (),
        should_stop: Callable[[], bool] = _never,
        language: str | None = None,
        careful: bool = True,
    ) -> Transcript:
        """Recognise ``audio`` [n], 16 kHz in [-1, 1], at most 30 s.

        The same as :meth:`hear`, then :meth:`read`, which explains the arguments.

        Raises:
            CancelledError: ``should_stop()`` became true.
            InputError: too long, or an unknown language.
        """
        window = self.hear(audio, should_stop)
        return self.read(
            window,
            draft=draft,
            prefix=prefix,
            should_stop=should_stop,
            language=language,
            careful=careful,
        )

    def hear(
        self, audio: NDArray[np.float32], should_stop: Callable[[], bool] = _never
    ) -> HeardWindow:
        """Encode ``audio`` [n], at most 30 s; the larger part of a pass. Raises as transcribe."""
        if len(audio) > MAX_AUDIO_S * SAMPLE_RATE_HZ:
            raise InputError(
                f"{len(audio) / SAMPLE_RATE_HZ:.1f} s of audio, expected at most {MAX_AUDIO_S:.0f}"
            )
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        mel = log_mel(audio, window_mel_frames(len(audio)), self._model.num_mels)
        return HeardWindow(self._model.encode(mel, should_stop), len(audio))

    @torch.inference_mode()
    def read(
        self,
        window: HeardWindow,
        *,
        draft: Sequence[int] = (),
        prefix: Sequence[int] = (),
        should_stop: Callable[[], bool] = _never,
        language: str | None = None,
        careful: bool = True,
    ) -> Transcript:
        """Decode what :meth:`hear` returned.

        Args:
            draft: tokens that are probably right; saves time, never changes the result.
            prefix: tokens that the transcript must begin with.
            should_stop: asked before every forward pass.
            language: a code like "en"; None means English unless another is clearly heard.
            careful: search for a better reading where the first is unsure; about twice the time.

        Raises:
            CancelledError: ``should_stop()`` became true.
            InputError: an unknown language.
        """
        if language is not None and language not in self.languages:
            raise InputError(f"language {language!r} is not one of {', '.join(self.languages)}")
        state = self._model.open()
        hidden, _ = self._model.decode([self._vocabulary.start], state, window.heard)
        first = self._model.logits(hidden)[0].softmax(-1)
        limit = min(_MAX_TOKENS, int(_TOKENS_PER_S * window.num_samples / SAMPLE_RATE_HZ) + 16)

        def decode(spoken: str) -> _Decoded:
            state.length = 1  # behind the start token
            return self._decode(state, window.heard, spoken, draft, prefix, should_stop, limit)

        spoken = language or "en"
        decoded = decode(spoken)
        if language is None and self._is_multilingual and (other := self._suspect(first)):
            # Noise makes detection guess wildly: the other language must also read well.
            alternative = decode(other)
            if alternative.average_logprob > max(
                decoded.average_logprob - _LOGPROB_SLACK, _MIN_OTHER_LOGPROB
            ):
                spoken, decoded = other, alternative
        is_settled = decoded.looped or decoded.average_logprob >= _SURE_LOGPROB
        if careful and not is_settled:
            is_settled = True
            state.length = 1
            decoded = self._search(decoded, state, window.heard, spoken, prefix, should_stop)
        no_speech = self._vocabulary.no_speech
        return self._describe(
            decoded,
            language=spoken,
            no_speech=float(first[no_speech]) if no_speech is not None else 0.0,
            num_frames=-(-window.num_samples // _SAMPLES_PER_FRAME),
            is_settled=is_settled,
        )

    def _suspect(self, first: Tensor) -> str | None:
        """The language other than English that the probabilities [V] of the first token name."""
        names = list(self._vocabulary.languages)
        probabilities = first[list(self._vocabulary.languages.values())]
        best = int(probabilities.argmax())
        share = float(probabilities[best] / probabilities.sum())
        return names[best] if names[best] != "en" and share >= _MIN_OTHER_SHARE else None

    def _prompt(self, language: str) -> list[int]:
        """What stands between the start token and the transcript."""
        vocabulary = self._vocabulary
        if not self._is_multilingual:
            return [vocabulary.no_timestamps]
        return [
            vocabulary.languages[language],
            vocabulary.transcribe,
            vocabulary.no_timestamps,
        ]

    def _search(
        self,
        greedy: _Decoded,
        state: DecoderState,
        heard: Heard,
        language: str,
        prefix: Sequence[int],
        should_stop: Callable[[], bool],
    ) -> _Decoded:
        """``greedy``, unless a beam search behind ``prefix`` finds what is clearly better."""
        end = self._vocabulary.end
        at_first = torch.zeros(1) if prefix else self._suppressed_first
        room = len(greedy.tokens) - len(prefix) + _BEAM_SLACK_TOKENS
        found = search(
            self._model,
            heard,
            state,
            [*self._prompt(language), *prefix],
            Rules(self._suppressed, at_first, end),
            max_tokens=min(room, self._model.max_positions - 5 - len(prefix)),
            should_stop=should_stop,
        )
        tokens = [*prefix, *found]
        if tokens == greedy.tokens:
            return greedy
        # Read once more as given, for the words' times and probabilities.
        whole = self._decode(state, heard, language, (), [*tokens, end], should_stop, 1)
        whole.num_passes += greedy.num_passes + len(found)
        gain = whole.average_logprob - greedy.average_logprob
        return whole if gain > _CLEARLY_BETTER_LOGPROB else greedy

    def _decode(
        self,
        state: DecoderState,
        heard: Heard,
        language: str,
        draft: Sequence[int],
        prefix: Sequence[int],
        should_stop: Callable[[], bool],
        limit: int,
    ) -> _Decoded:
        """Greedy decoding behind the start token, ``prefix`` forced, drafts verified in batches."""
        out = _Decoded(tokens=[], logprobs=[], attention=[])
        limit = min(limit + len(prefix), self._model.max_positions - 4)
        pending = self._prompt(language)
        guess = [*prefix, *draft[len(prefix) :]][: limit - 1]
        spare: list[int] = []  # of the draft, behind what it got wrong
        while not out.ended:
            if should_stop():
                raise CancelledError("the recogniser's pass was stopped")
            hidden, attention = self._model.decode([*pending, *guess], state, heard)
            out.num_passes += 1
            behind = len(pending) - 1  # row that predicts the first new token
            logits = self._model.logits(hidden[behind:]) + self._suppressed
            if not out.tokens:
                logits[0] += self._suppressed_first
            chosen = logits.argmax(-1)
            logprobs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
            candidates, confidences = chosen.tolist(), logprobs.tolist()
            num_agreed = 0
            for i, token in enumerate(candidates):
                is_forced = len(out.tokens) < len(prefix)
                if is_forced:
                    token = prefix[len(out.tokens)]
                self._accept(out, token, confidences[i], attention[behind + i], limit)
                if out.ended or i == len(guess) or guess[i] != token:
                    break
                num_agreed += 1
            state.length -= len(guess) - num_agreed
            pending = out.tokens[-1:]
            spare = guess[num_agreed:] or spare
            guess = _behind(spare, out.tokens)
            spare = [] if guess else spare
        return out

    def _accept(
        self, out: _Decoded, token: int, logprob: float, attention: Tensor, limit: int
    ) -> None:
        """Append one decided token to ``out`` and see whether the transcript ends with it."""
        out.logprobs.append(logprob)
        out.attention.append(attention)
        if token == self._vocabulary.end:
            out.ended = True
            return
        out.tokens.append(token)
        if excess := _loop_tokens(out.tokens):
            kept = len(out.tokens) - excess
            del out.tokens[kept:], out.logprobs[kept:], out.attention[kept:]
            out.looped = out.ended = True
        elif len(out.tokens) >= limit:
            out.ended = True

    def _describe(
        self,
        out: _Decoded,
        *,
        language: str,
        no_speech: float,
        num_frames: int,
        is_settled: bool,
    ) -> Transcript:
        vocabulary = self._vocabulary
        text = vocabulary.text(out.tokens)
        words: list[Word] = []
        if out.tokens:
            starts = token_starts(torch.stack(out.attention), num_frames)
            for piece in vocabulary.words(out.tokens, language):
                last = int(starts[piece.stop]) if piece.stop < len(starts) else num_frames
                logprob = sum(out.logprobs[piece]) / (piece.stop - piece.start)
                words.append(
                    Word(
                        text=vocabulary.text(out.tokens[piece]),
                        start_ms=int(starts[piece.start]) * FRAME_MS,
                        end_ms=last * FRAME_MS,
                        confidence=math.exp(logprob),
                        tokens=tuple(out.tokens[piece]),
                    )
                )
        data = text.encode()
        compression = len(data) / len(zlib.compress(data)) if data else 0.0
        return Transcript(
            tokens=tuple(out.tokens),
            text=text.strip(),
            words=tuple(words),
            language=language,
            no_speech_probability=no_speech,
            average_logprob=out.average_logprob,
            is_repetitive=out.looped or compression > _MAX_COMPRESSION_RATIO,
            num_forward_passes=out.num_passes,
            is_settled=is_settled,
        )


def window_mel_frames(num_samples: int) -> int:
    """Length of the padded window in mel frames (even): max(10 s, audio + 2 s), at most 30 s."""
    seconds = max(MIN_WINDOW_S, num_samples / SAMPLE_RATE_HZ + PAD_S)
    frames = math.ceil(seconds * SAMPLE_RATE_HZ / _SAMPLES_PER_FRAME) * FRAMES_PER_MEL
    return min(frames, MAX_MEL_FRAMES)


def _behind(spare: Sequence[int], decided: Sequence[int]) -> list[int]:
    """What of a draft's remainder is likely to come next: all behind the last decided token.

    A changed word or comma leaves the words after it likely, so once decoding meets the draft
    again it is taken up there. Empty as long as the two have not met.
    """
    if not decided or decided[-1] not in spare[:_REJOIN_TOKENS]:
        return []
    return list(spare[spare.index(decided[-1]) + 1 :])


def _loop_tokens(tokens: Sequence[int]) -> int:
    """Number of trailing tokens that only repeat what stands before them; 0 if it is no loop."""
    for period in range(1, min(_LONGEST_LOOP_TOKENS, len(tokens) // 4) + 1):
        repeats = _LOOP_REPEATS.get(period, 4)
        span = tokens[-period * repeats :]
        if len(span) == period * repeats and span[period:] == span[:-period]:
            return period * (repeats - 1)
    return 0


def _mask(size: int, suppressed: Sequence[int]) -> Tensor:
    """Additive mask [V]: minus infinity at ``suppressed``."""
    mask = torch.zeros(size)
    mask[[i for i in suppressed if 0 <= i < size]] = -math.inf
    return mask


class _Config:
    """What ``config.json`` of a faster-whisper folder says; absent keys are empty."""

    def __init__(self, path: Path) -> None:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            heads = config.get("alignment_heads") or []
            self.alignment_heads = [(int(layer), int(head)) for layer, head in heads]
            self.suppressed = [int(token) for token in config.get("suppress_ids") or []]
            self.suppressed_first = [int(token) for token in config.get("suppress_ids_begin") or []]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is not a Whisper config: {error}; run: omni fetch") from error
