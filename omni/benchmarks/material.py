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
from scipy.signal import butter, lfilter, resample_poly, sosfilt

from omni.errors import OmniError
from omni.types import OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

Synthesiser = Literal["espeak", "flite", "hibari"]
SPEECH_RMS = 10 ** (-23 / 20)
ESPEAK_VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")
FLITE_VOICES = ("slt", "rms", "awb")
HIBARI_RATES = (1.0, 0.87, 1.15)


def speak(text: str, synthesiser: Synthesiser, *, variant: int = 0) -> NDArray[np.float32]:
    """``text`` spoken, [n] samples; ``variant`` picks a voice. Silence at both ends is cut.

    Raises:
        OmniError: the synthesiser is not installed.
    """
    if synthesiser == "hibari":
        audio = at_rate(_hibari(text), HIBARI_RATES[variant % len(HIBARI_RATES)])
    elif synthesiser == "flite":
        audio = _flite(text, variant)
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
    """One to three coughs, each an explosion of noise, a decaying rush and often a voiced end.

    The three phases of Korpáš, Sadloňová and Vrabec, "Analysis of the cough sound: an overview"
    (1996): a burst of 30-80 ms, a rush of 100-200 ms, in every second one a voice of 50-120 ms.
    """
    pieces = []
    for _ in range(rng.integers(1, 4)):
        burst, rush, voiced = (
            round(rng.uniform(low, high) * OUTPUT_RATE_HZ)
            for low, high in ((0.03, 0.08), (0.1, 0.2), (0.05, 0.12))
        )
        low, high = rng.uniform(250, 600), rng.uniform(2500, 6000)
        sos = butter(2, [low, high], btype="band", output="sos", fs=OUTPUT_RATE_HZ)
        at = np.arange(burst + rush)
        decay = np.where(at < burst, np.exp(-at / burst), 0.4 * np.exp(-(at - burst) / (rush / 3)))
        sound = sosfilt(sos, rng.standard_normal(len(at))) * decay * np.minimum(at / 48, 1)
        sound /= np.abs(sound).max()
        if rng.random() < 0.5:
            pitch_hz = np.linspace(rng.uniform(180, 350), rng.uniform(120, 200), voiced)
            phase = 2 * np.pi * np.cumsum(pitch_hz) / OUTPUT_RATE_HZ
            buzz = sum(np.sin(k * phase) / k for k in range(1, 12)) * np.hanning(voiced)
            buzz = sosfilt(sos, buzz + 0.5 * rng.standard_normal(voiced) * np.hanning(voiced))
            sound = np.concatenate([sound[: -voiced // 2], 0.3 * buzz / np.abs(buzz).max()])
        pieces += [rng.uniform(0.3, 0.6) * sound, silence(rng.uniform(0.05, 0.25))]
    return np.concatenate(pieces).astype(np.float32)


_HUMS: dict[str, tuple[tuple[str, float, float, float], ...]] = {
    "m-hm": (("hum", 0.16, 1.0, 0.9), ("breath", 0.08, 1, 1), ("hum", 0.22, 1.1, 1.25)),
    "mm-hm": (("hum", 0.2, 1.1, 0.95), ("breath", 0.06, 1, 1), ("hum", 0.3, 1.2, 1.0)),
    "mm": (("hum", 0.35, 1.15, 0.85),),
    "hm": (("breath", 0.08, 1, 1), ("hum", 0.3, 1.1, 0.9)),
}
"""Stretches of a hum: voiced or not, seconds, pitch at its begin and end re the talker's."""
_HUMMERS = ((110.0, 1.0), (200.0, 1.15), (140.0, 1.05), (230.0, 1.2), (90.0, 0.95))
"""Pitch in Hz, and resonances re a grown man's."""
_FLITE_HUMS = tuple(
    (voice, phones) for phones in ("pau m m hh m m pau", "pau m m m pau") for voice in FLITE_VOICES
)
_ESPEAK_HUMS = tuple(
    (voice, phonemes) for phonemes in ("[[m'mh'mm]]", "[[m'm:]]") for voice in ESPEAK_VOICES
)
NUM_HUMS = len(_HUMS) * len(_HUMMERS) + len(_FLITE_HUMS) + len(_ESPEAK_HUMS)


def mm_hm(variant: int) -> NDArray[np.float32]:
    """A backchannel: 'mm-hm' hummed with closed lips, at 0.7 of speech level.

    ``variant`` below :data:`NUM_HUMS` picks one: 20 of our own, then flite's diphones, then
    espeak's formants. Neural synthesisers open the lips: Whisper hears hibari and Kokoro say 'Mom',
    'Him' or 'Yeah' for phonemes of 'mhm'.
    """
    variant %= NUM_HUMS
    spoken = variant - len(_HUMS) * len(_HUMMERS)
    if spoken < 0:
        audio = _hum(variant)
    elif spoken < len(_FLITE_HUMS):
        voice, phones = _FLITE_HUMS[spoken]
        audio = _run("flite", "-voice", voice, "-p", phones, "-o", "/dev/stdout")
    else:
        voice, phonemes = _ESPEAK_HUMS[spoken - len(_FLITE_HUMS)]
        audio = _run("espeak-ng", "-v", voice, "-s", "155", "--stdout", phonemes)
    return level(trim(audio), 0.7 * SPEECH_RMS)


def _hum(variant: int) -> NDArray[np.float32]:
    """A nasal murmur: harmonics and breath through /m/'s resonances and its antiresonance.

    Frequencies and bandwidths after Fujimura, "Analysis of nasal consonants" (1962).
    """
    rng = np.random.default_rng(variant)
    pitch_hz, size = _HUMMERS[variant % len(_HUMMERS)]
    stretches = tuple(_HUMS.values())[variant % len(_HUMS)]
    tilt, breath = rng.uniform(0.7, 1.5), rng.uniform(0.01, 0.04)
    pieces, phase = [], 0.0
    for kind, seconds, begin, end in stretches:
        num = round(seconds * OUTPUT_RATE_HZ)
        at = np.arange(num) / OUTPUT_RATE_HZ
        fade = np.minimum(1, np.minimum(at / 0.03, at[::-1] / 0.05))
        if kind == "breath":
            pieces.append(0.15 * fade * rng.standard_normal(num))
            continue
        phases = phase + np.cumsum(pitch_hz * np.linspace(begin, end, num)) / OUTPUT_RATE_HZ
        phase = phases[-1]
        harmonics = range(1, round(5000 / pitch_hz))
        voice = sum(np.sin(2 * np.pi * k * phases) / k**tilt for k in harmonics)
        pieces.append(fade * (voice + breath * rng.standard_normal(num)))
    audio = np.concatenate(pieces)
    for hz, bandwidth_hz in ((270, 70), (1050, 180), (2200, 250), (3100, 350)):
        section = _resonance(hz * size, bandwidth_hz * size)
        audio = lfilter([section.sum()], section, audio)
    section = _resonance(780 * size * rng.uniform(0.95, 1.4), rng.uniform(100, 300) * size)
    hummed: NDArray[np.float32] = lfilter(section / section.sum(), [1.0], audio).astype(np.float32)
    return hummed


def _resonance(hz: float, bandwidth_hz: float) -> NDArray[np.float64]:
    """[3] coefficients of a second-order section, gain 1 / sum at 0 Hz."""
    radius = np.exp(-np.pi * bandwidth_hz / OUTPUT_RATE_HZ)
    return np.array([1, -2 * radius * np.cos(2 * np.pi * hz / OUTPUT_RATE_HZ), radius**2])


def at_rate(audio: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Played ``rate`` times as fast: pitch, formants and pace change alike."""
    played: NDArray[np.float32] = resample_poly(audio, 100, round(100 * rate)).astype(np.float32)
    return played


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


def _flite(text: str, variant: int) -> NDArray[np.float32]:
    voice = FLITE_VOICES[variant % len(FLITE_VOICES)]
    return _run("flite", "-voice", voice, "-t", text, "-o", "/dev/stdout")


def _run(name: str, *arguments: str) -> NDArray[np.float32]:
    """A synthesiser that writes a WAV file to its standard output."""
    program = shutil.which(name)
    if program is None:
        raise OmniError(f"{name} is not installed: install the Debian package {name}")
    wav = subprocess.run([program, *arguments], capture_output=True, check=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    resampled: NDArray[np.float32] = resample_poly(audio, OUTPUT_RATE_HZ, rate).astype(np.float32)
    return resampled
