"""`omni bench` refuses in one sentence what it could not finish, before it measures anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omni.cli import EXIT_INTERRUPTED, bench, main


def test_a_benchmark_without_its_packages_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("conversation", "hybrid"):
        assert main(["bench", name, "--out", str(tmp_path / "new")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"omni bench: {name} needs the extra: pip install -e '.[bench]' "
            "(matplotlib is not installed)"
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["hearing", "kernels"])
def test_a_benchmark_of_the_source_says_where_to_run_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.PACKAGES, name, ())
    monkeypatch.chdir(tmp_path)
    assert main(["bench", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"omni bench: {name} needs a source checkout: run it in that folder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [[], ["all"], ["kernels", "all"]])
def test_all_means_every_benchmark(names: list[str]) -> None:
    assert bench.chosen(names) == bench.BENCHMARKS


def test_ctrl_c_ends_a_benchmark_and_what_it_started_without_tracebacks(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    child = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "print('measuring', flush=True)\n"
        "time.sleep(600)\n"
    )
    code = (
        "import sys\nfrom omni.cli import bench, main\n"
        f"bench.SCRIPTS['backbone'] = (('-c', {child!r}),)\nbench.PACKAGES['backbone'] = ()\n"
        f"sys.exit(main(['bench', 'backbone', '--out', {str(tmp_path)!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C reaches the whole group
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "measuring\n":
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in said
    status = Path("/proc") / marker.read_text() / "status"
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_the_folder_of_the_results_is_made_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    monkeypatch.setitem(bench.SCRIPTS, "hearing", (("-c", "print('{}')"),))
    assert main(["bench", "hearing", "--out", str(out)]) == 0
    assert (out / "hearing.json").is_file()
    assert f"Results go to {out}." in capsys.readouterr().out.splitlines()[0]
    (out / "file").write_text("")
    assert main(["bench", "kernels", "--out", str(out / "file")]) == 1
    assert capsys.readouterr().err.startswith("omni bench: cannot write to ")
