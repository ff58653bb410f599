"""The container files, checked without a container engine, and the test packages' script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from omni_streaming.access import check_host

from omni.config import ServerConfig
from omni.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(f for f in DOCKER.glob("Dockerfile*") if f.suffix != ".dockerignore")
KNOWN = {"FROM", "RUN", "ENV", "ARG", "COPY", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK"}
KNOWN |= {"CMD"}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def last(file: Path, wanted: str) -> str:
    return [rest for word, rest in instructions(file) if word == wanted][-1]


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [file.name for file in DOCKERFILES] == ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
class TestDockerfile:
    def test_every_instruction_is_known(self, file: Path) -> None:
        assert {word for word, _ in instructions(file)} <= KNOWN

    def test_bases_are_pinned_and_fit_the_python_we_need(self, file: Path) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        oldest = project["requires-python"].removeprefix(">=")
        bases = [rest.split()[0] for word, rest in instructions(file) if word == "FROM"]
        assert bases
        for base in bases:
            name, _, tag = base.partition(":")
            assert name == "python"
            assert tag.startswith(f"{oldest}-slim-")

    def test_what_is_copied_exists_and_is_not_ignored(self, file: Path) -> None:
        allowed = {
            line.removeprefix("!")
            for line in Path(f"{file}.dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        assert all((ROOT / name).exists() for name in allowed)
        build = tomllib.loads((ROOT / "pyproject.toml").read_text())
        needed = {"pyproject.toml", "setup.py", build["project"]["readme"]}
        needed |= set(build["project"]["license-files"])
        needed |= {
            path.split("/")[0] for path in build["tool"]["setuptools"]["package-dir"].values()
        }
        assert needed == allowed

    def test_runs_as_an_ordinary_user_with_the_weights_in_a_volume(self, file: Path) -> None:
        words = [word for word, _ in instructions(file)]
        user = last(file, "USER")
        assert re.search(rf"useradd --uid \d{{5}} --create-home {user}\b", file.read_text())
        assert words.index("USER") < words.index("CMD")
        assert "RUN" not in words[words.index("USER") :]
        volume = last(file, "VOLUME")
        assert f"OMNI_HOME={volume}" in last(file, "ENV")
        assert f"install -d -o {user} -g {user} {volume}" in file.read_text()

    def test_health_is_asked_of_the_server_that_is_started(self, file: Path) -> None:
        command = json.loads(last(file, "CMD"))
        port = int(last(file, "EXPOSE"))
        assert port == ServerConfig().port
        assert f"exec omni serve --host 0.0.0.0 --port {port}" in command[-1]
        assert command[-1].startswith("omni fetch && ")
        options, _, check = last(file, "HEALTHCHECK").partition(" CMD ")
        assert "--start-period=" in options
        program, flag, code = json.loads(check)
        assert (program, flag) == ("python", "-c")
        assert f"http://127.0.0.1:{port}/healthz" in code
        compile(code, "HEALTHCHECK", "exec")

    def test_torch_is_the_one_the_project_asks_for(self, file: Path) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for requirement in project["dependencies"]:
            if requirement.startswith("torch"):
                assert f'"{requirement}"' in file.read_text()

    def test_no_key_is_built_in(self, file: Path) -> None:
        assert not re.search(r"^(ENV|ARG).*KEY", file.read_text(), re.MULTILINE)
        with pytest.raises(ConfigError):  # so a container without one refuses to start
            check_host(ServerConfig(host="0.0.0.0"))


def test_compose_publishes_on_this_machine_only_and_insists_on_a_key() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(compose["services"]) == {"omni", "omni-gpu"}
    for service in compose["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert service["environment"]["OMNI_API_KEY"].startswith("${OMNI_API_KEY:?")
        (volume,) = service["volumes"]
        assert volume == f"models:{last(ROOT / service['build']['dockerfile'], 'VOLUME')}"
        assert not service["image"].endswith(":latest")
        assert service["cap_drop"] == ["ALL"]
    assert set(compose["volumes"]) == {"models"}


# --- test-packages.sh ----------------------------------------------------------------------------

ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
PROGRAMS = ("chromium", "chromedriver", "espeak-ng", "flite", "sox", *ARM)


def run_script(
    folder: Path, present: tuple[str, ...], apt: str | None, *, is_root: bool = True
) -> tuple[str, list[str]]:
    """Run the script where only ``present`` exists; ``apt`` is the body of a stand-in apt-get.

    Returns what it said and the stand-in's calls.
    """
    programs = folder / "bin"
    programs.mkdir()
    calls = folder / "calls"
    stand_ins = dict.fromkeys(present, "")
    stand_ins["id"] = f"echo {0 if is_root else 1000}"
    if apt is not None:
        stand_ins["apt-get"] = f'echo "$@" >> {calls}\n{apt}'
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (programs / "env").symlink_to("/usr/bin/env")
    recordings = folder / "recordings"
    if "recordings" in present:
        recordings.mkdir()
    done = subprocess.run(
        ["/bin/sh", DOCKER / "test-packages.sh"],
        env={"PATH": str(programs), "POCKETSPHINX_TESTDATA": str(recordings)},
        capture_output=True,
        text=True,
        check=True,  # it never fails
    )
    assert done.stderr == ""
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_script_is_silent_when_all_is_there(tmp_path: Path) -> None:
    assert run_script(tmp_path, (*PROGRAMS, "recordings"), "exit 1") == ("", [])


def test_script_installs_only_what_is_missing(tmp_path: Path) -> None:
    said, calls = run_script(tmp_path, ("chromium", "flite", "sox", *ARM), "exit 0")
    assert said == "installing for the tests: chromium-driver espeak-ng pocketsphinx-testdata\n"
    (call,) = calls
    assert call.endswith("chromium-driver espeak-ng pocketsphinx-testdata")
    assert call.startswith("install -y -qq")


def test_script_updates_the_lists_once_when_installing_fails(tmp_path: Path) -> None:
    apt = 'case "$1" in install) exit 100 ;; esac'
    said, calls = run_script(tmp_path, PROGRAMS, apt)
    assert [call.split()[0] for call in calls] == ["install", "update", "install"]
    assert said.splitlines()[-1] == (
        "tests that need them are skipped, these packages are not installed: pocketsphinx-testdata"
    )


@pytest.mark.parametrize(("apt", "is_root"), [(None, True), ("exit 0", False)])
def test_script_without_apt_or_rights_says_what_is_skipped(
    tmp_path: Path, apt: str | None, is_root: bool
) -> None:
    said, calls = run_script(tmp_path, (), apt, is_root=is_root)
    assert calls == []
    assert said.startswith("tests that need them are skipped")
    names = "chromium chromium-driver espeak-ng flite sox g++-aarch64-linux-gnu qemu-user-static"
    assert said.rstrip().endswith(f": {names} pocketsphinx-testdata")


def test_script_is_posix() -> None:
    shells = [s for s in ("/bin/sh", "/bin/dash", "/bin/bash") if os.access(s, os.X_OK)]
    assert shells
    for shell in shells:
        done = subprocess.run(
            [shell, "-n", DOCKER / "test-packages.sh"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), shell
