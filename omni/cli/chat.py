"""``omni chat``: talk to a backbone in writing, to try a model or a prompt."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omni.cli import COMMANDS, EXIT_INTERRUPTED, add_config_options, read_config
from omni.errors import CapacityError, InputError
from omni.types import MediaPart

if TYPE_CHECKING:
    from omni.assistant.text_chat import TextChat
    from omni.cli import Subparsers
    from omni.config import Config

Kind = Literal["image", "video"]

_KINDS: tuple[Kind, ...] = ("image", "video")

DESCRIPTION = """\
Chat with a model in the terminal. With a QUESTION: answers it and ends; without: asks for lines.

Ctrl-C stops an answer, which stays as far as it was printed. In a chat, a line may be
  /undo   take the last question and its answer back      /new    start over
  /stats  what the last answer cost                       /quit   end (so does Ctrl-D)
  /image FILE, /video FILE   show a picture or a clip with the next question

Models with a vision tower see pictures and clips, others are told what a detector and a text reader
find in them."""

EXAMPLES = """\
examples:
  omni chat "Why is the sky blue?"
  omni chat --model qwen2.5-coder-1.5b
  omni chat --model ~/models/Qwen3.5-0.8B --temperature 0.7
  omni chat --model ~/models/Qwen3.5-0.8B --image photo.jpg "What is on the table?"
  omni chat --model ~/models/Qwen3.5-0.8B --think --max-tokens 4096 "How many primes below 30?"
  echo "Name three rivers." | omni chat --system "Answer in French." """

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "chat",
        help=COMMANDS["chat"],
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="*", metavar="QUESTION")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a name of `omni fetch --list`, ORG/NAME of the hub once fetched, or a file or folder",
    )
    for kind, what in (("image", "picture"), ("video", "clip of up to a minute")):
        parser.add_argument(
            f"--{kind}",
            metavar="FILE",
            action="append",
            default=[],
            help=f"a {what} to ask about; may be repeated",
        )
    parser.add_argument("--system", metavar="TEXT", help="instructions (model.instructions)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer (%(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 is greedy (%(default)s)",
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (%(default)s)")
    parser.add_argument("--stats", action="store_true", help="print what each answer cost")
    parser.add_argument(
        "--think",
        action="store_true",
        default=None,
        help="think before answering (model.thinking); a terminal shows the thought, dimmed",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Chat until the end of the input; see ``omni chat --help``."""
    _check(args)
    config = read_config(
        args,
        {
            "model.backbone": args.model,
            "model.instructions": args.system,
            "model.thinking": args.think,
        },
    )
    shown = [_read(kind, name) for kind in _KINDS for name in getattr(args, kind)]
    chat = _open(config, args)
    for part in shown:
        chat.look(part)
    if args.question:
        question = " ".join(args.question)
        return 0 if _print_answer(chat, question, shown, args.stats) else EXIT_INTERRUPTED
    for line in _lines():
        command, _, rest = line.partition(" ")
        if line in ("/quit", "/exit"):
            break
        if line == "/undo":
            print("Taken back." if chat.undo() else "There is nothing to take back.")
        elif line == "/new":
            chat.restart()
            shown.clear()
        elif command in ("/image", "/video"):
            shown += _shown(chat, command.removeprefix("/"), rest)
        elif line == "/stats":
            _print_stats(chat)
        elif line.startswith("/"):
            print(f"{line} is not a command; known: /undo, /new, /stats, /quit, /image, /video")
        elif line:
            try:
                _print_answer(chat, line, shown, args.stats)
                shown.clear()
            except CapacityError as error:
                print(f"{error}; shorten the question or start over with /new", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, value, low, high in (
        ("--max-tokens", args.max_tokens, 1, 2**20),
        ("--temperature", args.temperature, 0.0, 2.0),
        ("--top-p", args.top_p, 1e-6, 1.0),
    ):
        if not low <= value <= high:
            shown = f"{low} to {high}" if isinstance(high, int) else f"{low:g} to {high:g}"
            raise InputError(f"{name} is {value}, expected {shown}")
    if args.question and not " ".join(args.question).strip():
        raise InputError("the question is empty: give it words, or leave it out to chat")


def _open(config: Config, args: argparse.Namespace) -> TextChat:
    from omni_kernels import library

    from omni import store, threads
    from omni.assistant.embedded import open_eyes
    from omni.assistant.text_chat import open_chat
    from omni.cli.serve import show_progress
    from omni.config import home
    from omni.engine.engine import SamplingParams
    from omni.models import load
    from omni.models.device import choose

    root = home(config)
    path = store.find(config.model.backbone, root, role="backbone")
    adapter = store.find(config.model.adapter, root) if config.model.adapter else None
    sizes = threads.resolve(engine=config.engine_threads, parts=config.parts_threads)
    if sys.stderr.isatty():
        print(f"Loading {config.model.backbone}...", file=sys.stderr, flush=True)
    model = load(
        path,
        home=root,
        progress=show_progress,
        adapter=adapter,
        thinking=config.model.thinking,
        device=choose(config.engine.device),
    )
    library.use_threads(sizes.engine)
    params = SamplingParams(
        temperature=args.temperature, top_p=args.top_p, seed=args.seed, max_tokens=args.max_tokens
    )
    chat = open_chat(
        model,
        config.engine,
        instructions=config.model.instructions,
        params=params,
        watcher=open_eyes(config),
    )
    if sys.stderr.isatty():
        chat.on_thought = _show_thought
    return chat


def _show_thought(text: str) -> None:
    """On standard error, where a pipe's reader does not take it for the answer."""
    print(f"{_DIM}{text}{_PLAIN}", end="", file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """Lines of the input, with a prompt where a person types them."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history of input()
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def _read(kind: Kind, name: str) -> MediaPart:
    """The file ``name``; the same content is the same picture."""
    path = Path(name).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}: {error.strerror}") from error
    return MediaPart(hashlib.sha256(data).hexdigest(), kind, data)


def _shown(chat: TextChat, kind: str, name: str) -> list[MediaPart]:
    """The picture or clip that a line of the chat names; none, with the reason, if it is bad."""
    name = name.strip()
    if (
        len(name) > 1 and name[0] in "'\"" and name[-1] == name[0]
    ):  # as a shell or a file manager gives it
        name = name[1:-1]
    if not name:
        print(f"name a file: /{kind} FILE", file=sys.stderr)
        return []
    try:
        part = _read("image" if kind == "image" else "video", name)
        chat.look(part)
    except InputError as error:
        print(error, file=sys.stderr)
        return []
    print(f"{name} will be shown with the next question.")
    return [part]


def _print_answer(
    chat: TextChat, question: str, shown: Sequence[MediaPart], with_stats: bool
) -> bool:
    """Print the answer as it comes; False if it was stopped by Ctrl-C."""
    answer = chat.ask(question, shown)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]")
        return False
    finally:
        answer.close()  # type: ignore[attr-defined]  # a generator: ends the answer
    print()
    if chat.stats.end in ("length", "context", "capacity"):
        words = why_cut(chat.stats.end, chat.stats.output_tokens, chat.params.max_tokens)
        if chat.stats.is_thinking:
            words += "; it was still thinking"
        print(f"[{words}]", file=sys.stderr)
    if with_stats:
        _print_stats(chat)
    return True


def why_cut(end: str, num_tokens: int, max_tokens: int) -> str:
    """What ended an answer of ``num_tokens`` before its time: length, context or capacity."""
    why = {
        "length": f"--max-tokens {max_tokens} allows no more",
        "context": "the conversation is the longest that the model follows; start a new one",
        "capacity": "the memory for conversations is full; engine.num_pages sets it",
    }[end]
    return f"cut after {num_tokens} tokens: {why}"


def _print_stats(chat: TextChat) -> None:
    stats = chat.stats
    print(
        f"[{stats.input_tokens} tokens in, {stats.cached_tokens} of them computed before; "
        f"{stats.output_tokens} out; first after {1000 * stats.first_token_s:.0f} ms, then "
        f"{stats.tokens_per_s:.1f} per second]",
        file=sys.stderr,
    )
