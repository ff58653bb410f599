"""``omni talk``: hold a conversation over the socket, from recordings, text or the microphone."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from omni.cli import COMMANDS, add_config_options, read_config
from omni.config import Config
from omni.errors import InputError, OmniError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from omni_streaming.client import Answer, Client, Event

    from omni.cli import Subparsers

DESCRIPTION = """\
Send recordings, a line of text or your microphone to a running server and hear the answers.

Each recording is played in real time; the next one begins when the answer has been heard.
Latency is the time from the end of speech in the recording to the first sound of the answer."""

ANSWER_TIMEOUT_S = 60.0  # without anything of the answer; a long one may take its time
NO_TURN_TIMEOUT_S = 15.0  # semantic turn detection may wait 8 s before it ends a turn
TRANSCRIPT_TIMEOUT_S = 5.0


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "talk",
        help=COMMANDS["talk"],
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recordings", nargs="*", type=Path, metavar="FILE", help="recordings to play in turn"
    )
    parser.add_argument("--text", help="say this in writing instead")
    parser.add_argument("--mic", action="store_true", help="talk with microphone and speakers")
    parser.add_argument(
        "--headphones",
        action="store_true",
        help="with --mic: listen while speaking, so that you can interrupt",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="WAV", help="write the answers here")
    parser.add_argument(
        "--record", type=Path, metavar="WAV", help="write both sides here: you left, Omni right"
    )
    parser.add_argument("--url", help="the server (default: http:// server.host : server.port)")
    parser.add_argument("--api-key", help="default: OMNI_API_KEY in the environment")
    parser.add_argument("--model", default="default", help="model to ask for")
    parser.add_argument("--voice", help="voice of the answers")
    parser.add_argument("--instructions", help="what the assistant is told about its task")
    parser.add_argument("--start", action="store_true", help="start a server for this conversation")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Talk; see ``omni talk --help``.

    Raises:
        OmniError: no server, an unreadable recording, no answer: one sentence each.
    """
    given = sum((bool(args.recordings), args.text is not None, args.mic))
    if given == 0:
        raise InputError("give recordings to play, or --text, or --mic")
    if given > 1:
        raise InputError("give only one of these: recordings to play, --text, or --mic")
    if args.text is not None and not args.text.strip():
        raise InputError("--text is empty: give it the words to say")
    for path in (args.output, args.record):
        if path is not None:
            require_writable(path)
    config = read_config(
        args, environment={"server.api_key": os.environ.get("OMNI_API_KEY") or None}
    )
    if args.mic:
        from omni_streaming.devices import require_sound

        require_sound()
    clips = [(path, read_recording(path)) for path in args.recordings]
    try:
        asyncio.run(_talk(args, config, clips))
    except TimeoutError as error:
        raise OmniError(str(error) or "the server did not answer in time") from error
    except OSError as error:
        raise OmniError(f"cannot write: {error}") from error
    return 0


async def _talk(
    args: argparse.Namespace, config: Config, clips: list[tuple[Path, NDArray[np.int16]]]
) -> None:
    from omni_streaming.client import Client, ConnectionFailed, ServerError

    api_key = args.api_key or config.server.api_key or None
    async with contextlib.AsyncExitStack() as stack:
        if args.start:
            url = await stack.enter_async_context(_own_server(config))
        else:
            url = args.url or f"http://{config.server.host}:{config.server.port}"
        shown = ShownText(is_live=args.text is not None and sys.stdout.isatty())
        client = Client(url, model=args.model, api_key=api_key, on_event=shown.take)
        try:
            await stack.enter_async_context(client)
        except ConnectionFailed as error:
            raise ConnectionFailed(
                f"{error}; start one with `omni serve`, or add --start"
            ) from error
        except ServerError as error:
            if error.code != "invalid_api_key":
                raise
            raise OmniError(
                f"{error}; give the server's key with --api-key or in OMNI_API_KEY"
            ) from error
        await _set_up(client, args)
        if args.mic:
            from omni_streaming.devices import converse

            print("Speak; Ctrl-C ends the conversation.", flush=True)
            await converse(client, full_duplex=args.headphones, say=print)
            return
        if args.text is not None:
            await client.write(args.text)
            answers = [await _answer(client, 0, shown)]
            print_answer(answers[0], None, with_text=not shown.has_begun)
        else:
            client.start_microphone()
            answers = [await _ask(client, path, pcm, shown) for path, pcm in clips]
        _write(args, client, answers)


async def _set_up(client: Client, args: argparse.Namespace) -> None:
    audio: dict[str, object] = {
        "input": {
            "transcription": {"model": "whisper-1"},
            "turn_detection": {"type": "semantic_vad"},
        }
    }
    if args.voice:
        audio["output"] = {"voice": args.voice}
    session: dict[str, object] = {"audio": audio}
    if args.instructions is not None:
        session["instructions"] = args.instructions
    if args.text is not None and not (args.output or args.record):
        session["output_modalities"] = ["text"]
    await client.update(**session)


class ShownText:
    """Prints the words of an answer as they come, where a person watches (``is_live``)."""

    def __init__(self, *, is_live: bool) -> None:
        self.is_live = is_live
        self.has_begun = False

    def take(self, event: Event) -> None:
        """Look at one event of the server."""
        if not self.is_live or event["type"] not in (
            "response.output_text.delta",
            "response.output_audio_transcript.delta",
        ):
            return
        words = event["delta"]
        if not self.has_begun:
            if not (words := words.lstrip()):
                return
            self.has_begun = True
            words = f"Omni: {words}"
        print(words, end="", flush=True)

    def end(self) -> None:
        """End the line that was begun."""
        if self.has_begun:
            print(flush=True)


async def _answer(client: Client, after: int, shown: ShownText) -> Answer:
    """The answer, however long it goes on; what arrived of a broken one is printed.

    Raises:
        OmniError: nothing more of it came, or the server went away.
    """
    try:
        return await client.answer(after=after, timeout_s=ANSWER_TIMEOUT_S)
    except (OmniError, TimeoutError) as error:
        part = client.unfinished
        if part is not None and part.text.strip() and not shown.has_begun:
            print(f"Omni: {part.text.strip()}", flush=True)
        if isinstance(error, OmniError):
            raise
        more = " more" if part is not None else ""
        raise OmniError(
            f"the server sent nothing{more} of its answer for {ANSWER_TIMEOUT_S:g} s"
        ) from error
    finally:
        shown.end()


async def _ask(client: Client, path: Path, pcm: NDArray[np.int16], shown: ShownText) -> Answer:
    """Play one recording and wait until its answer has been heard."""
    from omni_streaming.recording import speech_end_s

    after = len(client.events)
    began_s = client.say(pcm)
    await client.said()
    try:
        committed = await client.until(
            "input_audio_buffer.committed", after=after, timeout_s=NO_TURN_TIMEOUT_S
        )
    except TimeoutError:
        raise OmniError(
            f"the server heard no finished speech in {path}: is there any, and is it loud enough?"
        ) from None
    answer = await _answer(client, after, shown)
    with contextlib.suppress(TimeoutError):
        await client.until(
            "conversation.item.input_audio_transcription.completed",
            after=after,
            timeout_s=TRANSCRIPT_TIMEOUT_S,
        )
    print(f"You:  {client.transcripts.get(committed['item_id'], '').strip() or '(nothing heard)'}")
    print_answer(answer, began_s + speech_end_s(pcm))
    await client.heard()
    return answer


def print_answer(answer: Answer, spoken_s: float | None, *, with_text: bool = True) -> None:
    """Print what was answered and how long it took after ``spoken_s``, the end of speech."""
    if with_text:
        print(f"Omni: {answer.text.strip() or '(no words)'}")
    for call in answer.calls:
        print(f"      calls {call['name']}({call['arguments']})")
    if answer.status != "completed":
        print(f"      {answer.status}: {answer.reason or 'no reason given'}")
    times = []
    if spoken_s is not None and answer.heard_s is not None:
        times.append(
            f"first sound {1000 * (answer.heard_s - spoken_s):.0f} ms after your last word"
        )
    if spoken_s is None and answer.first_text_s is not None:
        times.append(f"first text {1000 * (answer.first_text_s - answer.created_s):.0f} ms")
    if answer.done_s is not None:
        times.append(f"generated in {1000 * (answer.done_s - answer.created_s):.0f} ms")
    if len(answer.pcm):
        times.append(f"{len(answer.audio) / 24_000:.1f} s of speech")
    print(f"      [{', '.join(times)}]", flush=True)


def _write(args: argparse.Namespace, client: Client, answers: list[Answer]) -> None:
    import numpy as np
    from omni_streaming.recording import write_wav

    if args.output:
        audio = np.concatenate([answer.audio for answer in answers])
        if not len(audio):
            raise OmniError(f"the answer has no sound, so {args.output} was not written")
        write_wav(args.output, audio)
    if args.record:
        client.recording.write(args.record)


def require_writable(path: Path) -> None:
    """Refuse before the conversation what could not be written after it.

    Raises:
        InputError: ``path`` is a folder, or its folder is missing or may not be written.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder, give it a file's name")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: it is not yours to write, choose another place")


def read_recording(path: Path) -> NDArray[np.int16]:
    """A recording of any common format as mono PCM16 at 24 kHz, [n].

    Raises:
        InputError: missing, not audio, or empty.
    """
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    from omni.types import OUTPUT_RATE_HZ

    if not path.exists():
        raise InputError(f"cannot read {path}: no such file")
    try:
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not len(audio):
        raise InputError(f"{path} holds no audio")
    mono = audio.mean(axis=1)
    common = np.gcd(rate_hz, OUTPUT_RATE_HZ)
    if rate_hz != OUTPUT_RATE_HZ:
        mono = resample_poly(mono, OUTPUT_RATE_HZ // common, rate_hz // common)
    pcm: NDArray[np.int16] = (np.clip(mono, -1, 1) * 32767).astype(np.int16)
    return pcm


@contextlib.asynccontextmanager
async def _own_server(config: Config) -> AsyncIterator[str]:
    """A server on a free port of this machine, for as long as the conversation."""
    from omni_streaming.listener import Listener, bind

    from omni.cli.serve import make_server

    listening = bind("127.0.0.1", 0)
    server = make_server(config, scripted=False)
    print("Loading the models...", file=sys.stderr, flush=True)
    server.worker.start()
    try:
        await asyncio.to_thread(server.worker.wait)
        if (failure := server.worker.failure) is not None:
            raise failure if isinstance(failure, OmniError) else OmniError(repr(failure))
        async with Listener(server.app(), config.server, listening, server.drain) as listener:
            yield listener.url
    finally:
        server.worker.stop()
        listening.close()
