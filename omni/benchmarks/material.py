"""Spoken material made on the spot: sentences by two synthesisers, noise, pauses, coughs, echo.

All audio is float32 mono at 24 kHz (the Realtime API's rate), speech at about -23 dBFS RMS.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile
from scipy.signal import butter, resample_poly, sosfilt

from omni.errors import OmniError
from omni.types import OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

Synthesiser = Literal["espeak", "flite", "hibari"]
SPEECH_RMS = 10 ** (-23 / 20)
ESPEAK_VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")


def speak(text: str, synthesiser: Synthesiser, *, variant: int = 0) -> NDArray[np.float32]:
    """``text`` spoken, [n] samples; ``variant`` picks an espeak voice. Silence at both ends is cut.

    Raises:
        OmniError: the synthesiser is not installed.
    """
    if synthesiser == "hibari":
        audio = _hibari(text)
    elif synthesiser == "flite":
        audio = _flite(text)
    else:
        audio = _espeak(text, variant)
    return level(trim(audio), SPEECH_RMS)


def trim(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the silence (below -40 dB of its peak) at both ends."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    return audio[loud[0] : loud[-1] + 1]


def with_pause(
    text: str, synthesiser: Synthesiser, pause_s: float, num_words: int
) -> NDArray[np.float32]:
    """``text`` spoken with a pause after its first ``num_words`` words.

    The sentence is spoken whole and cut at its quietest moment near the word boundary, so that its
    melody does not fall before the pause: a speaker who hesitates, not one who has finished.
    """
    whole = speak(text, synthesiser)
    head = speak(" ".join(text.split()[:num_words]), synthesiser)
    step = OUTPUT_RATE_HZ // 100
    power = (whole[: len(whole) // step * step].reshape(-1, step) ** 2).mean(1)
    middle = min(len(head) // step, len(power) - 10)
    low, high = max(5, middle - 20), min(len(power) - 5, middle + 8)
    cut = (low + int(np.argmin(power[low:high]))) * step
    fade = np.linspace(1, 0, step, dtype=np.float32)
    first, second = whole[:cut].copy(), whole[cut:].copy()
    first[-step:] *= fade
    second[:step] *= fade[::-1]
    return np.concatenate([first, silence(pause_s), second])


def level(audio: NDArray[np.float32], rms: float) -> NDArray[np.float32]:
    """Scaled so that the RMS of its loud half (above the median of 20 ms frames) is ``rms``."""
    frame = OUTPUT_RATE_HZ // 50
    frames = audio[: len(audio) // frame * frame].reshape(-1, frame)
    power = (frames**2).mean(1)
    loud = power[power >= np.median(power)].mean() if len(power) else (audio**2).mean()
    gain = rms / float(np.sqrt(loud + 1e-12))
    scaled: NDArray[np.float32] = np.clip(audio * gain, -1, 1).astype(np.float32)
    return scaled


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * OUTPUT_RATE_HZ), np.float32)


def with_noise(
    audio: NDArray[np.float32], snr_db: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """``audio`` in pink-like noise at ``snr_db`` below its speech level."""
    sos = butter(1, 1000, output="sos", fs=OUTPUT_RATE_HZ)
    noise = sosfilt(sos, rng.standard_normal(len(audio)))
    noise *= SPEECH_RMS * 10 ** (-snr_db / 20) / np.sqrt((noise**2).mean())
    mixed: NDArray[np.float32] = (audio + noise).astype(np.float32)
    return mixed


def cough(rng: np.random.Generator) -> NDArray[np.float32]:
    """A cough: two bursts of band-passed noise of 60-120 ms with an explosive onset."""
    pieces = []
    for share in (1.0, 0.6):
        num = round(rng.uniform(0.06, 0.12) * OUTPUT_RATE_HZ)
        low, high = rng.uniform(300, 500), rng.uniform(2500, 4500)
        sos = butter(2, [low, high], btype="band", output="sos", fs=OUTPUT_RATE_HZ)
        burst = sosfilt(sos, rng.standard_normal(num)) * np.exp(-np.arange(num) / (num / 3))
        pieces += [share * burst / np.abs(burst).max() * 0.5, silence(rng.uniform(0.05, 0.12))]
    return np.concatenate(pieces).astype(np.float32)


def mm_hm(variant: int) -> NDArray[np.float32]:
    """A backchannel: 'mm-hm' hummed, at 0.7 of speech level."""
    text = ("mhm", "mm hm", "mmm", "uh huh")[variant % 4]
    return level(trim(_espeak(text, variant)), 0.7 * SPEECH_RMS)


@cache
def _hibari_voice() -> object:
    from hibari import Hibari

    return Hibari()


def _hibari(text: str) -> NDArray[np.float32]:
    audio: NDArray[np.float32] = _hibari_voice()(text, seed=0)  # type: ignore[operator]
    return audio


def _espeak(text: str, variant: int) -> NDArray[np.float32]:
    voice = ESPEAK_VOICES[variant % len(ESPEAK_VOICES)]
    return _run("espeak-ng", "-v", voice, "-s", "155", "--stdout", text)


def _flite(text: str) -> NDArray[np.float32]:
    return _run("flite", "-voice", "slt", "-t", text, "-o", "/dev/stdout")


def _run(name: str, *arguments: str) -> NDArray[np.float32]:
    """A synthesiser that writes a WAV file to its standard output."""
    program = shutil.which(name)
    if program is None:
        raise OmniError(f"{name} is not installed: install the Debian package {name}")
    wav = subprocess.run([program, *arguments], capture_output=True, check=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    resampled: NDArray[np.float32] = resample_poly(audio, OUTPUT_RATE_HZ, rate).astype(np.float32)
    return resampled
