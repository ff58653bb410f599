"""The command itself: what it imports, how it reports, what `omni fetch --list` says."""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omni import cli, store
from omni.cli import main
from omni.errors import CapacityError, ConfigError


def test_help_imports_no_subcommand_and_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from omni.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'starlette', 'omni.store'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not [name for name in sys.modules if name.startswith('omni.cli.')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert name in done.stdout


def test_openmp_is_told_to_wait_passively_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMNI_HOME", "/nonexistent")
    assert main(["fetch", "--list"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_no_command_prints_help_and_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == cli.EXIT_MISUSED
    assert "doctor" in capsys.readouterr().out


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fech"])
    assert stop.value.code == cli.EXIT_MISUSED
    assert "fetch" in capsys.readouterr().err


def test_fetch_list_names_every_model_with_licence_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    assert main(["fetch", "--list"]) == 0
    listed = capsys.readouterr().out
    for model in store.MANIFEST:
        line = next(line for line in listed.splitlines() if line.startswith(model.name + " "))
        assert model.licence in line
        assert " no " in line
        assert model.sources[0].split(":")[1] in listed
    assert str(tmp_path) in listed


def test_fetch_of_an_unknown_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    assert main(["fetch", "smolm2"]) == cli.EXIT_FAILED
    said = capsys.readouterr().err
    assert said == "omni fetch: no model is called 'smolm2'; did you mean smollm2-135m?\n"
    assert list(tmp_path.iterdir()) == []


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_config_options(parser)
    return parser.parse_args(arguments)


def test_settings_are_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "omni.toml"
    file.write_text('[server]\nport = 8001\nhost = "::1"\n[model]\nvoice = "am_adam"\n')
    args = options("--config", str(file), "--set", "server.port=8002", "--set", "model.voice=emma")
    config = cli.read_config(args, {"server.api_key": "k", "server.host": None})
    assert (config.server.port, config.server.host, config.server.api_key) == (8002, "::1", "k")
    assert config.model.voice == "emma"


def test_setting_that_is_not_one_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--set port is not KEY=VALUE"):
        cli.read_config(options("--set", "port"))
    assert main(["fetch", "--list", "--set", "sever.port=1"]) == cli.EXIT_MISUSED
    assert "did you mean server?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (CapacityError("8 sessions are open"), 1, "omni fetch: 8 sessions are open\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from omni.cli import fetch

    def fail(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(fetch, "run", fail)
    assert main(["fetch"]) == code
    assert capsys.readouterr().err == said


def test_reader_that_closes_the_pipe_is_not_an_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "omni", "fetch", "--list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # at once: Python takes longer than that to start
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: omni {name} ")
    assert len(said.splitlines()) > 3


def test_progress_is_drawn_on_a_terminal_and_written_as_lines_elsewhere() -> None:
    code = (
        "from omni.cli.bars import Bars\n"
        "with Bars() as bars:\n"
        "    bars.begin('tiny', 2_000_000)\n"
        "    bars.update('tiny', 1_000_000, 'part 1 of 2')\n"
        "    bars.update('tiny', 1_500_000, 'part 1 of 2')\n"
        "    bars.end('tiny')\n"
    )
    command = [sys.executable, "-c", code]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert plain.stderr.splitlines() == [
        "tiny: 2 MB to download",
        "tiny: part 1 of 2",
        "tiny: verified",
    ]
    ours, theirs = pty.openpty()
    subprocess.run(
        command, stderr=theirs, check=True, env=os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    )
    os.close(theirs)
    drawn = all_of(ours)
    assert "2.0/2.0 MB" in drawn
    assert "verified" in drawn


def all_of(terminal: int) -> str:
    """What was written to a terminal whose other end is closed; one read may give a part of it."""
    data = b""
    with contextlib.suppress(OSError):  # EIO: nothing is left
        while part := os.read(terminal, 65_536):
            data += part
    os.close(terminal)
    return data.decode()


def test_rows_of_progress_are_one_line_each_on_80_columns() -> None:
    names = [max(store.MANIFEST.models, key=len), "tiny"]
    doing = "checking part 13 of 15"
    code = (
        "from omni.cli.bars import Bars\n"
        "with Bars() as bars:\n"
        f"    for name in {names}:\n"
        "        bars.begin(name, 491_400_000)\n"
        f"        bars.update(name, 131_400_000, {doing!r})\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", all_of(ours))
    rows = [row.rstrip() for row in re.split(r"[\r\n]+", drawn) if row.strip()]
    assert max(map(len, rows)) <= 80
    assert {row.split()[0] for row in rows} == set(names), rows
    assert any(row.startswith(names[0]) and row.endswith(doing) for row in rows), rows


@pytest.mark.parametrize(
    "asked",
    [[], ["whisper-base", "smollm2-135m"], ["--all"], ["org/name"], ["whisper-base", "o/n"]],
)
def test_a_stopped_fetch_says_how_to_go_on_with_what_was_asked_for(
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    monkeypatch.setattr(store, "ensure", stop)
    monkeypatch.setattr(store, "fetch_from_hub", stop)
    assert main(["fetch", *asked]) == cli.EXIT_INTERRUPTED
    again = " ".join(["omni fetch", *asked])
    assert capsys.readouterr().err.endswith(f"Stopped. `{again}` continues where it was.\n")
