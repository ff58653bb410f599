"""``omni describe`` as a user meets it: clips in, words with their times out, plain errors."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from omni_streaming.describe_file import (
    MS_PER_WORD,
    STEP_MS,
    CountedVoice,
    DecoderVoice,
    Fast,
    Options,
    Run,
    Spoken,
    Summary,
    Utterance,
)
from omni_streaming.describe_settings import NOTICE, DescribeSettings
from omni_streaming.describe_source import (
    MAX_GAP_S,
    MAX_PIXELS,
    STILL_S,
    Frames,
    Picture,
    VideoFile,
    camera_of,
)

from omni.assistant import embedded
from omni.cli import main
from omni.cli.describe import Recorder, clock
from omni.errors import InputError, OmniError
from omni.scene import Lettering, Scene, Thing

Pixels = NDArray[np.uint8]
GREY = np.full((48, 64, 3), 120, dtype=np.uint8)


def level(number: int) -> Pixels:
    return np.full((48, 64, 3), 40 + 4 * number, dtype=np.uint8)


def write_clip(path: Path, pictures: list[Pixels], times_ms: list[int] | None = None) -> Path:
    """A video without loss whose frames are shown at ``times_ms`` (default: 10 a second)."""
    times_ms = times_ms or [100 * number for number in range(len(pictures))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "mpeg4", rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0" if path.suffix == ".mkv" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, at_ms in zip(pictures, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Eyes:
    """Eyes that see what a picture's brightness means; the rest is the real machine."""

    def __init__(self, scene_of: Callable[[int], Scene]) -> None:
        self.scene_of = scene_of
        self.looked: list[tuple[int, int]] = []  # (time, mean brightness)

    def look(
        self,
        picture: bytes | Pixels,
        at_ms: int,
        state: object | None,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Scene, object]:
        assert isinstance(picture, np.ndarray)
        brightness = round(float(picture.mean()))
        self.looked.append((at_ms, brightness))
        scene = replace(self.scene_of(brightness), at_ms=at_ms)
        if not wants_text:
            scene = replace(scene, lettering=None)
        return scene, None


def thing(label: str, x: float, **more: object) -> Thing:
    box = (x - 0.1, 0.4, x + 0.1, 0.7)
    return Thing(label=label, confidence=0.9, box=box, **more)  # type: ignore[arg-type]


ROOM = Scene(at_ms=0, things=(thing("chair", 0.2, track_id=1, num_frames=9),))
NEAR = Scene(
    at_ms=0,
    things=(*ROOM.things, thing("person", 0.5, track_id=2, num_frames=9, distance_m=0.8)),
)
SIGN = replace(
    ROOM, lettering=(Lettering(text="Way out", confidence=0.98, box=(0.2, 0.4, 0.8, 5)),)
)


def run_over(
    pictures: Iterator[Picture], eyes: Eyes, options: Options | None = None
) -> tuple[list[Utterance], Run]:
    ended: list[Utterance] = []
    run = Run(
        Frames(pictures),
        eyes,
        CountedVoice(),
        options or Options(look_ms=100),
        Fast(),
        on_end=ended.append,
    )
    for _ in run.run():
        pass
    return ended, run


def steady(seconds: float, pixels: Pixels = GREY, fps: float = 4.0) -> Iterator[Picture]:
    for number in range(round(seconds * fps)):
        yield Picture(pixels, round(1000 * number / fps))


# --- The run -------------------------------------------------------------------------------------


def test_a_static_scene_is_described_once_and_times_fit_together() -> None:
    ended, run = run_over(steady(60), Eyes(lambda _: ROOM))
    assert [one.text for one in ended] == [NOTICE, "In front of you: a chair on the left."]
    for one in ended:
        assert one.began_ms is not None
        assert one.ended_ms is not None
        assert one.frame_at_ms <= one.at_ms <= one.began_ms
        assert one.ended_ms - one.began_ms == len(one.text.split()) * MS_PER_WORD
        assert not one.cut_off
    assert (run.num_pictures, run.num_looks) == (240, 240)


def test_a_warning_cuts_off_what_is_spoken() -> None:
    def pictures() -> Iterator[Picture]:
        for one in steady(10):
            yield replace(one, pixels=level(40)) if one.at_ms >= 2_000 else one

    ended, _ = run_over(pictures(), Eyes(lambda brightness: NEAR if brightness > 150 else ROOM))
    cut, hazard, *_ = ended
    assert (cut.text, cut.cut_off) == (NOTICE, True)
    assert (hazard.kind, hazard.text) == ("hazard", "Person very near, ahead!")
    assert hazard.frame_at_ms == 2_000
    assert hazard.at_ms == 2_100  # a look takes 100 ms
    assert hazard.at_ms == cut.ended_ms
    assert hazard.began_ms is not None
    assert hazard.began_ms - hazard.at_ms <= 30


def test_slow_eyes_drop_all_but_the_newest_picture() -> None:
    eyes = Eyes(lambda _: ROOM)
    _, run = run_over(steady(10), eyes, Options(look_ms=600))
    assert run.num_pictures == 40
    assert run.num_looks == len(eyes.looked) <= 18
    assert [at_ms for at_ms, _ in eyes.looked][:4] == [0, 500, 1000, 1750]


def test_text_is_read_when_it_is_asked_for() -> None:
    options = Options(look_ms=100, commands=((20_000, "read"),))
    ended, _ = run_over(steady(30), Eyes(lambda _: SIGN), options)
    text = ended[-1]
    assert (text.kind, text.text) == ("text", "It says: Way out.")
    assert text.began_ms is not None
    assert 20_000 <= text.began_ms <= 20_500


def test_nothing_begins_after_the_end_but_all_is_heard() -> None:
    ended, run = run_over(steady(1), Eyes(lambda _: ROOM))
    (notice,) = ended
    assert notice.text == NOTICE
    assert notice.ended_ms == run.now_ms - STEP_MS
    assert not notice.cut_off


def test_the_same_file_gives_the_same_run() -> None:
    first, second = (
        [one.record() for one in run_over(steady(20), Eyes(lambda _: ROOM))[0]] for _ in range(2)
    )
    assert first == second


def test_a_rate_shortens_speech() -> None:
    assert CountedVoice(1.5).speak(NOTICE).length_ms < CountedVoice().speak(NOTICE).length_ms


def test_a_summary_counts_what_was_heard_only() -> None:
    summary = Summary()
    summary.take(Utterance("hazard", "Car very near!", 900, 1_000, 1_100, 2_000))
    summary.take(Utterance("change", "A dog.", 900, 1_000, cut_off=True))
    assert summary.kinds == {"hazard": 1}
    assert (summary.num_words, summary.speech_ms, summary.latency_ms(0.5)) == (3, 900, 200.0)


# --- Files ---------------------------------------------------------------------------------------


def shown(path: Path, fps: float) -> list[tuple[int, int]]:
    with VideoFile(path) as file:
        return [(one.at_ms, round(float(one.pixels.mean()))) for one in file.pictures(fps)]


def test_pictures_are_what_a_player_shows_at_the_time(tmp_path: Path) -> None:
    """Times come from the file's own clock: this one has a frame that stands for a second."""
    path = write_clip(
        tmp_path / "a.mkv", [level(n) for n in range(5)], [5_000, 5_200, 5_300, 6_300, 6_400]
    )
    found = shown(path, 4.0)
    assert [at_ms for at_ms, _ in found] == list(range(0, 1_501, 250))
    assert [brightness for _, brightness in found] == [40, 44, 48, 48, 48, 48, 56]


def test_a_clip_held_on_its_side_is_shown_upright(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", [GREY] * 3)
    turned = tmp_path / "b.mp4"
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header
    unit = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero = bytes(4)
    data[at : at + 20] = zero + unit + zero + minus + zero
    turned.write_bytes(data)
    with VideoFile(turned) as file:
        assert next(file.pictures(1)).pixels.shape == (64, 48, 3)
    with VideoFile(source) as file:
        assert next(file.pictures(1)).pixels.shape == (48, 64, 3)


def photo_on_its_side() -> bytes:
    """A JPEG 64 wide whose EXIF says that it was held on its side: dark at the top once upright."""
    pixels = np.full((48, 64, 3), 200, dtype=np.uint8)
    pixels[:, :32] = 20  # the left of what is stored is the top of what is seen
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


def test_a_photo_is_shown_upright_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "photo.mp4"  # a name is no proof
    path.write_bytes(photo_on_its_side())
    with VideoFile(path) as file:
        pictures = list(file.pictures(2))
    assert [one.at_ms for one in pictures] == list(range(0, 1_000 * STILL_S, 500))
    first = pictures[0].pixels
    assert first.shape == (64, 48, 3)
    assert first[:28].max() < 60
    assert first[36:].min() > 160


def test_a_clip_of_photos_is_shown_upright(tmp_path: Path) -> None:
    """Motion JPEG: each frame carries what its camera notes of a photo."""
    path = tmp_path / "a.mjpeg"
    path.write_bytes(photo_on_its_side() * 3)
    with VideoFile(path) as file:
        first = next(file.pictures(25)).pixels
    assert first.shape == (64, 48, 3)
    assert first[:28].mean() < 60 < 160 < first[36:].mean()


def test_a_large_photo_is_reduced(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), np.full((2_400, 3_600, 3), 90, dtype=np.uint8))
    with VideoFile(path) as file:
        height, width, _ = next(file.pictures(1)).pixels.shape
    assert 0.99 * MAX_PIXELS <= height * width <= MAX_PIXELS
    assert width / height == pytest.approx(1.5, abs=0.01)


def test_a_clock_that_leaps_does_not_stop_the_run(tmp_path: Path) -> None:
    leap = round(1000 * MAX_GAP_S) + 5_000
    path = write_clip(tmp_path / "a.mkv", [level(n) for n in range(4)], [0, 500, leap, leap + 500])
    with VideoFile(path) as file:
        times = [one.at_ms for one in file.pictures(4)]
        assert times[-1] == 1_000
        assert file.damage.num_leaps == 1


def test_one_bad_packet_does_not_end_a_file(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(n).integers(0, 255, (48, 64, 3), np.uint8) for n in range(20)]
    path = write_clip(tmp_path / "a.mkv", pictures)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    with VideoFile(path) as file:
        assert [one.at_ms for one in file.pictures(4)][-1] >= 1_500


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [level(n) for n in range(40)])
    decoded = 0
    with VideoFile(path) as file:
        whole = file._decoded

        def counted() -> Iterator[object]:
            nonlocal decoded
            for frame in whole():
                decoded += 1
                yield frame

        file._decoded = counted  # type: ignore[method-assign]
        pictures = file.pictures(4)
        for _ in range(4):
            next(pictures)
        assert decoded <= 10


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("0", 0),
        ("12", 12),
        ("/dev/video3", 3),
        ("a.mp4", None),
        ("2024", None),
        ("/dev/null", None),
    ],
)
def test_a_number_is_a_camera_and_all_else_a_file(name: str, camera: int | None) -> None:
    assert camera_of(name) == camera


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Eyes:
    """In place of the detector: a room, and a person very near in bright pictures."""
    eyes = Eyes(lambda brightness: NEAR if brightness > 150 else ROOM)
    monkeypatch.setattr(embedded, "open_eyes", lambda _: eyes)
    return eyes


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Eight seconds of a room; somebody steps close after two."""
    return write_clip(tmp_path / "clip.mkv", [GREY if n < 20 else level(40) for n in range(80)])


def test_it_prints_what_would_be_said_and_writes_a_log(
    room: Eyes, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert main(["describe", str(clip), "--look-ms", "100", "--out", str(log)]) == 0
    out = capsys.readouterr().out
    assert f"  0:00.0  framing  {NOTICE}" in out
    assert "  0:02.1  hazard   Person very near, ahead!" in out
    assert "1 hazard" in out
    assert "p95" in out
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kind"] for line in lines][:2] == ["framing", "hazard"]
    keys = "at_ms kind text frame_at_ms began_ms ended_ms cut_off"
    assert list(lines[0]) == keys.split()
    assert lines[0]["cut_off"] is True
    assert lines[1]["frame_at_ms"] == 2_000


def test_warnings_can_be_left_out_and_distances_be_steps(
    room: Eyes, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--no-hazards --units steps --directions clock --look-ms 50"
    assert main(["describe", str(clip), *options.split()]) == 0
    out = capsys.readouterr().out
    assert "hazard" not in out
    assert "at 12 o'clock, about 1 step" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "cannot read none.mp4: no such file"),
        (["text.mp4"], "cannot read text.mp4: not a video (Invalid data found)"),
        (["cut.jpg"], "cannot read cut.jpg: the image ends too early, after 400 bytes; send the "
         "whole file"),
        (["sound.wav"], "sound.wav has no video stream, only sound or text"),
        (["folder"], "cannot read folder: it is a folder, expected a video, a photo or a camera "
         "(a number, /dev/videoN)"),
        (["pipe"], "cannot read pipe: it is a pipe, expected a video, a photo or a camera "
         "(a number, /dev/videoN)"),
        (["/dev/null"], "cannot read /dev/null: it is a device, expected a video, a photo or a "
         "camera (a number, /dev/videoN)"),
        (["none.mp4", "--out", "text.mp4"], "cannot read none.mp4: no such file"),
        (["999"], "there is no camera 999: nothing at /dev/video999"),
        (["/dev/video998"], "there is no camera 998: nothing at /dev/video998"),
        (["clip.mkv", "--fps", "0"], "--fps is 0.0, expected 0.1 to 30"),
        (["clip.mkv", "--rate", "9"], "--rate is 9.0, expected 0.25 to 1.5"),
        (["0", "--speed", "fast"], "a camera cannot go faster than time: leave --speed fast out"),
        (["clip.mkv", "--out", "clip.mkv"], "clip.mkv is the video itself, give another name"),
        (["clip.mkv", "--out", "no/log"], "cannot write no/log: there is no folder no"),
        (["clip.mkv", "--out", "/dev/full"], "cannot write /dev/full: No space left on device"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(
    arguments: list[str],
    message: str,
    room: Eyes,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("not a video\n" * 20)
    Path("cut.jpg").write_bytes(photo_on_its_side()[:400])
    Path("folder").mkdir()
    os.mkfifo("pipe")  # nobody writes into it: who opens it waits for ever
    with wave.open("sound.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    assert main(["describe", *arguments]) == 1
    assert capsys.readouterr().err.splitlines() == [f"omni describe: {message}"]


def test_without_a_detector_it_says_what_to_run(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path / "empty"))
    assert main(["describe", str(clip)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("omni describe: ")
    assert "nanodet-416" in line
    assert "omni fetch" in line


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "--help"])
    out = capsys.readouterr().out
    assert out.count("  omni describe ") >= 5
    assert "Not a mobility aid" in out


def test_a_stopped_run_leaves_whole_files(
    room: Eyes,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the middle of a warning: it is in the log as far as it was heard."""
    look = room.look

    def interrupted(*args: object, **kwargs: object) -> tuple[Scene, object]:
        if args[1] == 2_500:
            raise KeyboardInterrupt
        return look(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "look", interrupted)
    log = tmp_path / "log.jsonl"
    assert main(["describe", str(clip), "--look-ms", "100", "--out", str(log)]) == 130
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["kind"], last["cut_off"], last["ended_ms"]) == ("hazard", True, 2_500)
    assert "2 utterances in 2.5 s" in capsys.readouterr().out


# --- Sound ---------------------------------------------------------------------------------------


class Beeps:
    """A voice of a constant level, half a second long."""

    def speak(self, text: str) -> Spoken:
        return Spoken(0, 500, np.full(12_000, 1000, np.int16))


def test_speech_stands_at_its_time_in_the_file_and_is_cut_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with Recorder(None, path) as recorder:
        run = Run(
            Frames(steady(4)),
            Eyes(lambda _: ROOM),
            Beeps(),
            Options(look_ms=100, settings=DescribeSettings()),
            Fast(),
            on_end=recorder.take,
        )
        for now_ms in run.run():
            if now_ms == 250:
                break  # in the middle of the notice
        run.close()
        recorder.fill(1_000)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (24_000, 1, 24_000)
        pcm = np.frombuffer(file.readframes(24_000), "<i2")
    (loud,) = np.nonzero(pcm)
    begin = STEP_MS * 24  # it was asked for a step before
    assert (int(loud[0]), int(loud[-1])) == (begin, 250 * 24 - 1)
    assert np.all(pcm[begin : 250 * 24] == 1000)


def test_sound_that_does_not_fit_on_the_disk_is_one_error(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with (
        pytest.raises(OmniError, match=r"^cannot write /dev/full: No space left on device$"),
        Recorder(log, Path("/dev/full")) as recorder,
    ):
        recorder.fill(1_000)
    with pytest.raises(KeyboardInterrupt), Recorder(None, Path("/dev/full")):
        raise KeyboardInterrupt  # before there was sound: the header is written when it closes


@pytest.mark.parametrize(("ms", "text"), [(0, "  0:00.0"), (83_400, "  1:23.4")])
def test_clock_shows_minutes(ms: int, text: str) -> None:
    assert clock(ms) == text


def test_a_file_without_frames_is_damaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [GREY])
    with VideoFile(path) as file:
        file._decoded = lambda: iter(())  # type: ignore[method-assign]
        with pytest.raises(InputError, match="none of its frames can be decoded"):
            next(file.pictures(4))


# --- With the embedded weights -------------------------------------------------------------------


@pytest.mark.weights
def test_the_embedded_eyes_and_voice_describe_a_photo(tmp_path: Path) -> None:
    """In a process of its own, as a user runs it; stopped when the photo was shown for a while."""
    skimage = pytest.importorskip("skimage.data")
    cv2.imwrite(str(tmp_path / "cat.jpg"), skimage.chelsea()[:, :, ::-1])
    options = "--audio a.wav --look-ms 100 --out log.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "omni", "describe", "cat.jpg", *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("cat" in line["text"] for line in lines), done.stdout
    with wave.open(str(tmp_path / "a.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
    assert len(pcm) >= 8 * 24_000
    for line in lines:
        begin, end = (line[key] * 24 for key in ("began_ms", "ended_ms"))
        assert np.sqrt((pcm[begin:end] ** 2).mean()) > 300


@pytest.mark.weights
def test_ctrl_c_ends_a_run_in_real_time(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", [GREY] * 600)
    options = "--speed realtime --out log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "omni", "describe", "a.mkv", *options.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert NOTICE in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "1 utterances" in out
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["cut_off"] is True


@pytest.mark.weights
def test_a_decoder_speaks_as_long_as_its_sound() -> None:
    from omni.config import Config, home
    from omni.speech.registry import open_decoder

    voice = DecoderVoice(open_decoder("hibari", home(Config())), "heart", delay_ms=20)
    spoken = voice.speak(NOTICE)
    assert spoken.delay_ms == 20
    assert spoken.length_ms == len(spoken.pcm) * 1000 // 24_000 > 2_000
