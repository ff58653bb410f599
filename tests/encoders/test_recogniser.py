from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_samples import RATE_HZ, Audio, Say, noise, silence
from omni_encoders.recogniser import (
    PAD_S,
    Recogniser,
    _loop_tokens,
    window_mel_frames,
)
from scipy.signal import resample_poly

from omni.errors import CancelledError, InputError, ModelError

SENTENCES = (
    "The children played in the garden until it was dark.",
    "Could you tell me when the next train to London leaves?",
    "She bought seven apples, two lemons and a loaf of bread.",
)
HUMAN = Path("/usr/share/pocketsphinx/test/data/librivox")
WEIGHTS = pytest.mark.weights


def spoken(text: str) -> list[str]:
    return re.sub(r"[^a-z ]", "", text.lower()).split()


@WEIGHTS
@pytest.mark.parametrize("sentence", SENTENCES[:2])
def test_clear_speech_is_transcribed_word_for_word(
    recogniser: Recogniser, say: Say, sentence: str
) -> None:
    transcript = recogniser.transcribe(say(sentence))
    assert spoken(transcript.text) == spoken(sentence)
    assert transcript.language == "en"
    assert transcript.no_speech_probability < 0.3
    assert not transcript.is_repetitive


@WEIGHTS
def test_human_speech_is_transcribed(recogniser: Recogniser) -> None:
    if not HUMAN.is_dir():
        pytest.skip("Debian package pocketsphinx-testdata is not installed")
    lines = (HUMAN / "transcription").read_text().splitlines()
    errors = words = 0
    for line in lines:
        match = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip())
        assert match
        audio, rate = soundfile.read(HUMAN / f"{match[2]}.wav", dtype="float32")
        assert rate == RATE_HZ
        found = spoken(recogniser.transcribe(audio).text.replace("-", " ").replace("Mr.", "mister"))
        expected = match[1].split()
        words += len(expected)
        errors += (
            len(expected) - len(set(expected) & set(found)) - (len(expected) - len(set(expected)))
        )
    assert words > 60
    assert errors <= 4  # "ill-disposed" is heard as "ill-sposed", a stuttered "a more a"


@WEIGHTS
@pytest.mark.parametrize(
    "change",
    [
        lambda tokens: tokens,
        lambda tokens: tokens[: len(tokens) // 2],
        lambda tokens: [*tokens, 264, 1002],
        lambda tokens: [*tokens[:3], 11, *tokens[3:]],
        lambda tokens: [*tokens[:3], *tokens[4:]],
        lambda tokens: [*tokens[:4], 1337, *tokens[5:]],
        lambda tokens: [264] * 12,
        lambda tokens: list(reversed(tokens)),
    ],
    ids=["right", "half", "too long", "inserted", "deleted", "changed", "garbage", "reversed"],
)
def test_a_draft_never_changes_the_result(recogniser: Recogniser, say: Say, change) -> None:
    window = recogniser.hear(say(SENTENCES[2]))
    plain = recogniser.read(window)
    drafted = recogniser.read(window, draft=change(list(plain.tokens)))
    assert drafted.tokens == plain.tokens
    assert drafted.words == pytest.approx(plain.words) or [w.text for w in drafted.words] == [
        w.text for w in plain.words
    ]
    assert drafted.num_forward_passes <= plain.num_forward_passes + 1


@WEIGHTS
def test_a_right_draft_takes_one_forward_pass(recogniser: Recogniser, say: Say) -> None:
    window = recogniser.hear(say(SENTENCES[0]))
    plain = recogniser.read(window)
    assert plain.num_forward_passes == len(plain.tokens) + 1
    assert recogniser.read(window, draft=plain.tokens).num_forward_passes == 1


@WEIGHTS
def test_one_changed_word_in_a_draft_costs_few_passes(recogniser: Recogniser, say: Say) -> None:
    window = recogniser.hear(say(SENTENCES[2]))
    tokens = list(recogniser.read(window).tokens)
    for draft in (
        [*tokens[:4], *tokens[5:]],
        [*tokens[:4], 1337, *tokens[4:]],
        [*tokens[:4], 1337, *tokens[5:]],
        [*tokens[:4], *tokens[6:]],
    ):
        assert recogniser.read(window, draft=draft).num_forward_passes <= 4


@WEIGHTS
def test_an_unsure_reading_is_replaced_by_a_more_probable_one(
    recogniser: Recogniser, say: Say
) -> None:
    num_replaced = 0
    for sentence in SENTENCES:
        clip = say(sentence)
        hiss = noise(len(clip) / RATE_HZ + 1, 0.1)[: len(clip)]
        window = recogniser.hear(np.asarray(clip + hiss, dtype=np.float32))
        greedy, careful = recogniser.read(window, careful=False), recogniser.read(window)
        assert not greedy.is_settled
        assert careful.is_settled
        assert careful.average_logprob >= greedy.average_logprob
        num_replaced += careful.tokens != greedy.tokens
        assert recogniser.read(window, draft=greedy.tokens).tokens == careful.tokens
        if careful.tokens != greedy.tokens:
            assert [w.start_ms for w in careful.words] == sorted(w.start_ms for w in careful.words)
    assert num_replaced > 0


@WEIGHTS
def test_a_reading_that_is_sure_is_not_searched(recogniser: Recogniser, say: Say) -> None:
    window = recogniser.hear(say(SENTENCES[0]))
    careful, greedy = recogniser.read(window), recogniser.read(window, careful=False)
    assert greedy.is_settled
    assert careful == greedy


@WEIGHTS
def test_a_prefix_is_kept_and_continued(recogniser: Recogniser, say: Say) -> None:
    window = recogniser.hear(say(SENTENCES[0]))
    plain = recogniser.read(window)
    forced = [*recogniser.read(recogniser.hear(say(SENTENCES[1]))).tokens[:3]]
    continued = recogniser.read(window, prefix=forced)
    assert list(continued.tokens[:3]) == forced
    assert recogniser.read(window, prefix=plain.tokens[:5]).tokens == plain.tokens


@WEIGHTS
def test_word_times_follow_the_speech(recogniser: Recogniser, say: Say) -> None:
    first, second = say(SENTENCES[0]), say(SENTENCES[1])
    gap_s = 0.8
    words = recogniser.transcribe(np.concatenate([first, silence(gap_s), second])).words
    assert all(a.end_ms <= b.start_ms + 20 for a, b in itertools.pairwise(words))
    assert all(word.start_ms <= word.end_ms for word in words)
    boundary_ms = len(first) * 1000 / RATE_HZ
    last = next(i for i, word in enumerate(words) if word.text.strip() == "dark.")
    assert words[last].start_ms < boundary_ms
    assert words[last + 1].start_ms > boundary_ms - 100
    assert words[last + 1].text.strip() == "Could"
    assert words[last + 2].start_ms > boundary_ms + gap_s * 1000 - 100
    assert "".join(word.text for word in words).strip().startswith("The children played")


@WEIGHTS
@pytest.mark.parametrize("stop_after", [0, 3, 8, 14])
def test_a_pass_stops_when_asked(recogniser: Recogniser, say: Say, stop_after: int) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > stop_after

    with pytest.raises(CancelledError):
        recogniser.transcribe(say(SENTENCES[0]), should_stop=should_stop)
    assert asked == stop_after + 1


@WEIGHTS
def test_non_speech_is_marked_as_such(recogniser: Recogniser, say: Say) -> None:
    speech = recogniser.transcribe(say(SENTENCES[0]))
    for audio in (silence(3), noise(3, 0.05)):
        transcript = recogniser.transcribe(audio)
        assert transcript.no_speech_probability > 3 * speech.no_speech_probability
        assert len(transcript.tokens) < 40


@WEIGHTS
def test_no_audio_at_all_is_a_transcript(recogniser: Recogniser) -> None:
    assert recogniser.transcribe(silence(0)).language == "en"


@WEIGHTS
def test_too_much_audio_is_refused(recogniser: Recogniser) -> None:
    with pytest.raises(InputError, match=r"31\.0 s of audio, expected at most 30"):
        recogniser.transcribe(silence(31))


@WEIGHTS
def test_unknown_language_is_refused(recogniser: Recogniser) -> None:
    with pytest.raises(InputError, match="'klingon' is not one of"):
        recogniser.transcribe(silence(1), language="klingon")


def foreign(language: str, text: str) -> Audio:
    program = shutil.which("espeak-ng")
    if program is None:
        pytest.skip("espeak-ng is not installed")
    wave = subprocess.run(
        [program, "-v", language, "-s", "140", "--stdout", text], capture_output=True, check=True
    ).stdout
    samples = np.frombuffer(wave[44:], dtype=np.int16).astype(np.float32) / 32768
    return np.asarray(resample_poly(samples, 320, 441), dtype=np.float32)


@WEIGHTS
@pytest.mark.parametrize(
    ("language", "text", "word"),
    [
        ("fr", "Bonjour, je voudrais deux croissants et un café, s'il vous plaît.", "voudrais"),
        ("es", "Buenos días, quisiera dos panes y un café. ¿Cuánto cuesta?", "Cuánto"),
    ],
)
def test_another_language_is_detected_and_reported(
    recogniser: Recogniser, language: str, text: str, word: str
) -> None:
    transcript = recogniser.transcribe(foreign(language, text))
    assert transcript.language == language
    assert word in transcript.text


@WEIGHTS
@pytest.mark.parametrize("damage", ["model.bin", "config.json", "tokenizer.json"])
def test_damaged_folder_is_a_model_error(models: Path, tmp_path: Path, damage: str) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        source = models / "whisper-base" / name
        if name == damage:
            (tmp_path / name).write_bytes(source.read_bytes()[:1000])
        else:
            (tmp_path / name).symlink_to(source)
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / damage))):
        Recogniser(tmp_path)


@pytest.mark.weights
def test_weights_that_are_no_numbers_are_a_model_error(models: Path, tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        shutil.copy(models / "whisper-base" / name, tmp_path / name)
    with (tmp_path / "model.bin").open("r+b") as file:
        file.seek((tmp_path / "model.bin").stat().st_size // 2)
        file.write(b"\xff" * 400_000)
    with pytest.raises(ModelError, match=r"model\.bin is damaged"):
        Recogniser(tmp_path)


def test_config_of_another_shape_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"alignment_heads": [1, 2]}))
    with pytest.raises(ModelError, match="is not a Whisper config"):
        Recogniser(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0, 1000), (3, 1000), (8, 1000), (8.5, 1050), (20, 2200), (29, 3000)]
)
def test_window_is_padded_to_ten_seconds_or_by_two(seconds: float, frames: int) -> None:
    assert window_mel_frames(int(seconds * RATE_HZ)) == frames
    assert PAD_S == 2.0


@pytest.mark.parametrize(
    ("tokens", "excess"),
    [
        ([1, 2, 3] * 3, 0),
        ([1, 2, 3] * 5, 12),
        ([9, 9, 9, 9, 9, 9, 9], 0),
        ([7, *[9] * 8], 7),
        ([5, 6, *[1, 2, 3, 4, 5] * 4], 15),
        ([1, 2, 3, 4, 5, 6, 7, 8], 0),
        ([5, 5, 6, 6, 5, 5, 6, 6], 0),
    ],
)
def test_loops_are_told_from_speech(tokens: list[int], excess: int) -> None:
    assert _loop_tokens(tokens) == excess
