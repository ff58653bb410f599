"""``omni describe``: what would be said about a video file or a camera, and when."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from omni.cli import COMMANDS, EXIT_INTERRUPTED, add_config_options, read_config
from omni.cli.talk import require_writable
from omni.errors import InputError, OmniError
from omni.types import OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from omni_streaming.describe_file import Options, Run, Summary, Utterance, Voice
    from omni_streaming.describe_source import Source, VideoFile

    from omni.assistant.watching import Watcher
    from omni.cli import Subparsers
    from omni.config import Config

DESCRIPTION = """\
Describe a video file or a camera the way a session would: warnings first, then what changes.

Prints each utterance with the time at which it would begin. A file goes as fast as this machine
allows, on a clock on which every look takes the time that it took (--look-ms: a fixed one, so that
two runs are the same); --speed realtime takes as long as the file. A camera is always in real time,
until Ctrl-C. Without --audio, the length of what is said is estimated from its words."""

EXAMPLES = """\
examples:
  omni describe street.mp4                                what would be said, and when
  omni describe street.mp4 --out log.jsonl --audio out.wav    the same in files, to see and to hear
  omni describe menu.jpg --read-text-at 3                 "read it" after three seconds; a photo
                                                          is shown for ten
  omni describe walk.mp4 --verbosity brief --units steps --directions clock
  omni describe street.mp4 --look-ms 120 --out a.jsonl    the same on every machine
  omni describe 0                                         the first camera (also /dev/video0)

A line of the log: {"at_ms": decided on, "kind": hazard, change, answer, text or framing, "text",
"frame_at_ms": the picture it tells of, "began_ms", "ended_ms": heard (null: replaced before it
was), "cut_off"}. Not a mobility aid: steps, kerbs and glass are not seen."""

MAX_FPS = 30.0


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "describe",
        help=COMMANDS["describe"],
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "video", metavar="VIDEO_OR_CAMERA", help="a video or photo, a number, /dev/videoN"
    )
    parser.add_argument("--out", type=Path, metavar="JSONL", help="write the log here")
    parser.add_argument("--audio", type=Path, metavar="WAV", help="write the speech here, in place")
    parser.add_argument(
        "--speed", choices=("realtime", "fast"), help="of a file (fast); cameras: realtime"
    )
    parser.add_argument(
        "--verbosity", choices=("brief", "normal", "detailed"), default="normal", help="(normal)"
    )
    parser.add_argument(
        "--units", choices=("metric", "imperial", "steps"), default="metric", help="(metric)"
    )
    parser.add_argument(
        "--directions", choices=("sides", "clock"), default="sides", help="left, or 10 o'clock"
    )
    parser.add_argument("--no-hazards", action="store_true", help="no warnings")
    parser.add_argument(
        "--fps", type=float, default=4.0, help="pictures a second to look at (%(default)s)"
    )
    parser.add_argument(
        "--read-text-at",
        type=float,
        action="append",
        default=[],
        metavar="S",
        help="ask for the text in the picture after S seconds (may be repeated)",
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="pace of the speech, 0.25 to 1.5 (%(default)s)"
    )
    parser.add_argument(
        "--look-ms", type=int, metavar="MS", help="a look takes so long, whatever it took"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Describe; see ``omni describe --help``.

    Raises:
        OmniError: no such file or camera, no video in it, no detector: one sentence each.
    """
    from omni_streaming.describe_source import CameraSource, Frames, VideoFile, camera_of

    from omni.assistant.embedded import open_eyes

    camera = camera_of(args.video)
    _check(args, is_camera=camera is not None)
    config = read_config(args)
    with contextlib.ExitStack() as stack:
        file: VideoFile | None = None
        source: Source
        if camera is not None:
            opened = CameraSource(camera, args.fps)
            stack.callback(opened.close)
            source = opened
        else:
            file = stack.enter_context(VideoFile(Path(args.video)))
            source = Frames(file.pictures(args.fps))
        watcher = open_eyes(config)
        _wake(watcher)
        voice = _voice(args, config)
        recorder = stack.enter_context(Recorder(args.out, args.audio))
        return _describe(args, source, file, watcher, voice, recorder)


def _check(args: argparse.Namespace, *, is_camera: bool) -> None:
    for name, value, low, high in (
        ("--fps", args.fps, 0.1, MAX_FPS),
        ("--rate", args.rate, 0.25, 1.5),
        ("--look-ms", args.look_ms if args.look_ms is not None else 0, 0, 60_000),
        *(("--read-text-at", at_s, 0, 1e6) for at_s in args.read_text_at),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}, expected {low:g} to {high:g}")
    if is_camera and args.speed == "fast":
        raise InputError("a camera cannot go faster than time: leave --speed fast out")
    for path in (args.out, args.audio):
        if path is not None:
            require_writable(path)
            both_exist = path.exists() and os.path.exists(args.video)
            if both_exist and not is_camera and path.samefile(args.video):
                raise InputError(f"{path} is the video itself, give another name")
    if args.out is not None and args.out == args.audio:
        raise InputError("--out and --audio name the same file")


def _wake(watcher: Watcher) -> None:
    """Open the weights now: the first look would take their time."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (416, 416, 3), dtype=np.uint8)
    watcher.look(noise, 0, None)


def _voice(args: argparse.Namespace, config: Config) -> Voice:
    from omni_streaming.describe_file import START_MS, CountedVoice, DecoderVoice

    if args.audio is None:
        return CountedVoice(args.rate)
    from omni.config import home
    from omni.speech.registry import open_decoder

    decoder = open_decoder(config.model.speech, home(config))
    name = config.model.voice if config.model.voice in decoder.voices else decoder.voices[0]
    return DecoderVoice(decoder, name, args.rate, None if args.look_ms is None else START_MS)


def _options(args: argparse.Namespace) -> Options:
    from omni_streaming.describe_file import Options
    from omni_streaming.describe_settings import DescribeSettings

    settings = DescribeSettings(
        verbosity=args.verbosity,
        units=args.units,
        directions=args.directions,
        hazards=not args.no_hazards,
    )
    commands = tuple((round(1000 * at_s), "read") for at_s in sorted(args.read_text_at))
    return Options(settings=settings, look_ms=args.look_ms, commands=commands)  # type: ignore[arg-type]


def _describe(
    args: argparse.Namespace,
    source: Source,
    file: VideoFile | None,
    watcher: Watcher,
    voice: Voice,
    recorder: Recorder,
) -> int:
    from omni_streaming.describe_file import Fast, RealTime, Run, Summary

    summary = Summary()

    def end(one: Utterance) -> None:
        summary.take(one)
        recorder.take(one)

    is_real = file is None or args.speed == "realtime"
    pace = RealTime() if is_real else Fast()
    run = Run(source, watcher, voice, _options(args), pace, on_begin=show, on_end=end)
    code = 0
    if is_real and file is None:
        print("Describing; Ctrl-C ends it.", file=sys.stderr, flush=True)
    try:
        with _bar(file.duration_s if file else None) as advance:
            for now_ms in run.run():
                advance(now_ms)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        run.close()
        recorder.fill(run.now_ms)
    _print_summary(run, summary, file)
    return code


def show(one: Utterance) -> None:
    """Print an utterance with the time at which it begins to be heard."""
    assert one.began_ms is not None
    print(f"{clock(one.began_ms)}  {one.kind:<7}  {one.text}", flush=True)


def clock(ms: int) -> str:
    """ "12:03.4", minutes and seconds."""
    return f"{ms // 60_000:3d}:{ms % 60_000 / 1000:04.1f}"


@contextlib.contextmanager
def _bar(duration_s: float | None) -> Iterator[Callable[[int], None]]:
    """How far a file is, on a terminal; yields what is to be told the time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    progress = Progress(
        TextColumn("{task.fields[at]}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # lines above the bar, unless they go elsewhere
        transient=True,
    )
    task = progress.add_task("", total=1000 * duration_s if duration_s else None, at=clock(0))

    def advance(now_ms: int) -> None:
        if now_ms % 100 == 0:
            progress.update(task, completed=now_ms, at=clock(now_ms))

    with progress:
        yield advance


def _print_summary(run: Run, summary: Summary, file: VideoFile | None) -> None:
    total_s = max(run.now_ms, 1) / 1000
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary.kinds.most_common())
    print(f"\n{summary.kinds.total()} utterances in {total_s:.1f} s: {kinds or 'none'}")
    print(
        f"{summary.num_words} words, {summary.num_cut_off} cut off, speech "
        f"{summary.speech_ms / 10 / total_s:.0f}% of the time"
    )
    if (median := summary.latency_ms(0.5)) is not None:
        print(
            f"from a picture to the first sound about it: {median:.0f} ms, p95 "
            f"{summary.latency_ms(0.95):.0f} ms"
        )
    looks = sorted(run.looking_ms) or [0]
    print(
        f"{run.num_looks} of {run.num_pictures} pictures looked at, "
        f"{looks[len(looks) // 2]} ms a look"
    )
    if file is not None and (file.damage.num_bad_packets or file.damage.num_leaps):
        print(
            f"{file.path} is damaged: {file.damage.num_bad_packets} packets could not be decoded, "
            f"its clock leapt {file.damage.num_leaps} times",
            file=sys.stderr,
        )


class Recorder:
    """Writes each utterance when it has ended: what is in the files is whole at any time.

    Raises:
        OmniError: a file cannot be written.
    """

    def __init__(self, log: Path | None, audio: Path | None) -> None:
        self._log_path, self._audio_path = log, audio
        self._log: IO[str] | None = None
        self._wav: wave.Wave_write | None = None
        self._stream: IO[bytes] | None = None
        self._num_samples = 0

    def __enter__(self) -> Self:
        if self._log_path is not None:
            with _told(self._log_path):
                self._log = self._log_path.open("w", encoding="utf-8")
        if self._audio_path is not None:
            with _told(self._audio_path):
                self._stream = self._audio_path.open("wb")
                self._wav = wave.open(self._stream, "wb")
                self._wav.setnchannels(1)
                self._wav.setsampwidth(2)
                self._wav.setframerate(OUTPUT_RATE_HZ)
        return self

    def take(self, one: Utterance) -> None:
        """Write an utterance that has ended, or never began."""
        if self._log is not None:
            with _told(self._log_path):
                self._log.write(json.dumps(one.record(), ensure_ascii=False) + "\n")
                self._log.flush()
        if self._wav is not None and one.began_ms is not None:
            self.fill(one.began_ms)
            self._write(one.pcm.astype("<i2").tobytes())

    def fill(self, now_ms: int) -> None:
        """Silence up to ``now_ms``."""
        missing = now_ms * OUTPUT_RATE_HZ // 1000 - self._num_samples
        while self._wav is not None and missing > 0:
            piece = min(missing, 60 * OUTPUT_RATE_HZ)
            self._write(bytes(2 * piece))
            missing -= piece

    def _write(self, data: bytes) -> None:
        assert self._wav is not None
        with _told(self._audio_path):
            self._wav.writeframes(data)  # also puts the length into the header
        self._num_samples += len(data) // 2

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failures: list[OmniError] = []
        for file, path in (
            (self._log, self._log_path),
            (self._wav, self._audio_path),
            (self._stream, self._audio_path),
        ):
            if file is not None:
                try:
                    with _told(path):
                        file.close()  # writes what is still in its buffer
                except OmniError as failure:
                    failures.append(failure)
        if failures and error is None:  # else it failed before, and says so
            raise failures[0]


@contextlib.contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """What the system says of writing ``path``, in one sentence.

    Raises:
        OmniError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OmniError(f"cannot write {path}: {error.strerror or error}") from error
