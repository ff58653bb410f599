"""``omni fetch``: bring weights into the model store, list them, check them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omni import config, store
from omni.cli import COMMANDS, EXIT_INTERRUPTED, add_config_options, read_config
from omni.errors import FetchError, InputError

if TYPE_CHECKING:
    from omni.cli import Subparsers

DESCRIPTION = """\
Bring weights into the model store, so that Omni runs offline. Without NAME: the defaults, of which
those that only describe pictures are left out, with a word, where they cannot be had.

Packages come through your own pip and npm, so mirrors and proxies keep working; without npm the
registry that npm_config_registry names is asked. Every file is checked against its published
sha256. An interrupted fetch continues where it stopped.

ORG/NAME (or ORG/NAME@REVISION, or ORG/NAME/FILE.gguf) is a model of the Hugging Face hub, for
`model.backbone`; HF_ENDPOINT names a mirror, HF_TOKEN opens what is gated."""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fetch",
        help=COMMANDS["fetch"],
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a model of `omni fetch --list`, or ORG/NAME"
    )
    parser.add_argument("--all", action="store_true", help="everything in the list")
    parser.add_argument("--list", action="store_true", help="list all models and stop")
    parser.add_argument(
        "--verify", action="store_true", help="hash what is there again; fetch what is damaged"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch, list or verify; see ``omni fetch --help``."""
    home, manifest = config.home(read_config(args)), store.MANIFEST
    for name in args.names:
        refuse_own(name, manifest)
    hub = {name: model for name in args.names if (model := store.HubModel.of(name))}
    names = tuple(dict.fromkeys(name for name in args.names if name not in hub))
    if not args.names:
        names = manifest.defaults
    if args.all:
        names = tuple(manifest.models)
    for name in names:
        manifest.get(name)  # an unknown name is refused before anything happens
    if args.list:
        print_list(home, manifest)
        return 0
    if args.verify:
        if not args.names and not args.all:
            names = tuple(model.name for model in manifest if _is_here(model, home))
        verify(names, home, manifest)
    again = " ".join(["omni fetch", *(["--all"] if args.all else []), *args.names])
    extra: tuple[str, ...] = ()
    if not args.names and not args.all:
        extra = tuple(
            name for name in names if _is_missing_extra(manifest.get(name), home, manifest)
        )
        names = tuple(name for name in names if name not in extra)
    code = fetch(names, home, manifest, again) if names or not hub else 0
    return code or fetch_optional(extra, home, manifest, again) or fetch_from_hub(hub, home, again)


def refuse_own(name: str, manifest: store.Manifest) -> None:
    """Refuse what a setting would take as a file or folder of one's own.

    Raises:
        InputError: it is one.
    """
    own = Path(name).expanduser()
    if name not in manifest.models and own.exists():
        kind = "folder" if own.is_dir() else "file"
        raise InputError(f"{name} is a {kind} and needs no fetching: give it to --model")


def fetch_from_hub(models: dict[str, store.HubModel], home: Path, again: str) -> int:
    """Bring ``models`` of the hub into the store; returns the exit code.

    ``again`` is the command that continues it when it is stopped.
    """
    for name, model in models.items():
        if not model.is_present(home):
            from omni.cli.bars import Bars

            try:
                with Bars() as bars:
                    store.fetch_from_hub(model, home, bars)
            except KeyboardInterrupt:
                print(f"\nStopped. `{again}` continues where it was.", file=sys.stderr)
                return EXIT_INTERRUPTED
        print(f"In the model store: {name}.")
    return 0


def fetch(names: tuple[str, ...], home: Path, manifest: store.Manifest, again: str) -> int:
    """Bring ``names`` into the store with a progress bar each; returns the exit code.

    ``again`` is the command that continues it when it is stopped.
    """
    missing = [name for name in names if not store.is_present(name, home, manifest)]
    if not missing:
        print(f"In the model store: {', '.join(names) or 'nothing'}.")
        return 0
    from omni.cli.bars import Bars  # a tenth of a second, needed only when there is work

    try:
        with Bars() as bars:
            store.ensure(missing, home, bars, manifest)
    except KeyboardInterrupt:
        print(f"\nStopped. `{again}` continues where it was.", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"Fetched and verified: {', '.join(missing)}.")
    return 0


def fetch_optional(names: tuple[str, ...], home: Path, manifest: store.Manifest, again: str) -> int:
    """Bring what of ``names`` can be had and say what cannot; returns the exit code."""
    for name in names:
        try:
            if code := fetch((name,), home, manifest, again):
                return code
        except FetchError as error:
            print(
                f"Not fetched, and not needed to talk: {error} (`omni fetch {name}` tries again).",
                file=sys.stderr,
            )
    return 0


def verify(names: tuple[str, ...], home: Path, manifest: store.Manifest) -> None:
    """Hash the files of ``names`` again and say what is wrong; damaged files are deleted."""
    for name in names:
        removed = store.remove_corrupt(name, home, manifest)
        if removed:
            print(f"{name}: {', '.join(removed)} was damaged and is deleted.")
        elif store.is_present(name, home, manifest):
            print(f"{name}: as published.")


def print_list(home: Path, manifest: store.Manifest) -> None:
    """Print a table of all models: name, role, size, licence, whether it is here, source."""
    rows = [("NAME", "ROLE", "SIZE", "LICENCE", "HERE", "WHAT, AND WHERE FROM")]
    for model in manifest:
        role = model.role + (" (default)" if model.is_default else "")
        here = "yes" if store.is_present(model.name, home, manifest) else "no"
        size = f"{model.size / 1e6:,.0f} MB"
        rows.append((model.name, role, size, model.licence, here, model.about))
        rows.append(("", "", "", "", "", "from " + _sources(model)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        cells[2] = row[2].rjust(widths[2])
        print("  ".join([*cells, row[5]]).rstrip())
    print(f"\nThe model store is {home / 'models'} (OMNI_HOME changes it).")


def _sources(model: store.Model) -> str:
    """The packages of a model, a numbered series abbreviated to its first and last."""
    by_registry: dict[str, list[str]] = {}
    for source in model.sources:
        registry, _, package = source.partition(":")
        by_registry.setdefault(registry, []).append(package)
    shown = []
    for registry, packages in by_registry.items():
        ends = packages if len(packages) <= 2 else [packages[0], "...", packages[-1]]
        shown.append(f"{registry}: {' '.join(ends)}")
    return ", ".join(shown)


def _is_missing_extra(model: store.Model, home: Path, manifest: store.Manifest) -> bool:
    return model.is_optional and not store.is_present(model.name, home, manifest)


def _is_here(model: store.Model, home: Path) -> bool:
    """Whether any file of the model is in the store."""
    at = store.folder(model.name, home)
    return any((at / file.path).is_file() for file in model.files)
