"""The command ``omni``: parses, runs one subcommand, turns errors into one sentence.

A subcommand is a module here with ``add_parser(subparsers)`` and ``run(args) -> int``; only the
chosen one is imported, so ``omni --help`` answers at once. A subcommand that reads settings calls
:func:`add_config_options` and :func:`read_config`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import omni
from omni import config, threads
from omni.errors import ConfigError, OmniError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = {
    "serve": "talk to Omni in the browser or from a Realtime client",
    "talk": "send a recording, or your microphone, and hear the answer",
    "chat": "talk to a model in writing",
    "describe": "what would be said about a video or a camera to someone who cannot see",
    "fetch": "bring weights into the model store",
    "doctor": "what is installed, what is missing and what to do",
    "bench": "measure latency, accuracy and speed on this machine",
}

EXIT_FAILED = 1
EXIT_MISUSED = 2
EXIT_INTERRUPTED = 130


class Command(Protocol):
    """What every module named in :data:`COMMANDS` offers."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Add the subcommand's own parser to ``subparsers``."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code.

        Raises:
            OmniError: its message is shown as the one line on what went wrong.
        """


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``omni ARGV`` and return its exit code: 0, 1 failed, 2 misused, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    threads.set_environment()  # before anything can import torch
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    command = _import_command(chosen) if chosen in COMMANDS else None
    args = _parser(chosen, command).parse_args(arguments)
    if command is None:  # parse_args has refused every unknown name
        _parser(None, None).print_help()
        return EXIT_MISUSED
    try:
        code = command.run(args)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return code
    except ConfigError as error:
        print(f"omni {chosen}: {error}", file=sys.stderr)
        return EXIT_MISUSED
    except OmniError as error:
        print(f"omni {chosen}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough (`omni ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE`` and ``--set KEY=VALUE``, read by :func:`read_config`."""
    group = parser.add_argument_group("settings")
    group.add_argument("--config", metavar="FILE", type=Path, help="settings in TOML")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one setting, for example server.port=8001 (may be repeated)",
    )


def read_config(
    args: argparse.Namespace,
    overrides: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, object] | None = None,
) -> config.Config:
    """The settings: defaults < ``--config`` < ``environment`` < ``--set`` < ``overrides``.

    None values of ``environment`` and ``overrides`` (options of the command) are left out.

    Raises:
        ConfigError: an unknown key, a wrong type, an unreadable file.
    """
    values = {key: value for key, value in (environment or {}).items() if value is not None}
    values |= dict(_parse_setting(text) for text in args.set)
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    return config.load(args.config, values)


def _parse_setting(text: str) -> tuple[str, object]:
    """Split ``KEY=VALUE``; the value is TOML, or a plain string when it is not valid TOML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text} is not KEY=VALUE, for example server.port=8001")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _import_command(name: str) -> Command:
    return cast(Command, importlib.import_module(f"omni.cli.{name}"))


def _parser(chosen: str | None, command: Command | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omni", description="A real-time multimodal assistant that runs on your own machine."
    )
    parser.add_argument("--version", action="version", version=f"omni {omni.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, about in COMMANDS.items():
        if name == chosen and command is not None:
            command.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=about)
    return parser
