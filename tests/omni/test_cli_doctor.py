"""`omni doctor`: every finding that is not ok says what to do."""

from __future__ import annotations

import http.server
import itertools
import os
import shutil
import socket
import sys
import threading
import types
from collections import namedtuple
from pathlib import Path

import pytest
import tiny_qwen3_5
from gguf import GGMLQuantizationType
from omni_streaming.assembly import assemble
from starlette.testclient import TestClient
from tiny_models import make_hf, save_gguf

from omni import config, store
from omni.cli import doctor, main
from omni.models import device


def settings(**values: object) -> config.Config:
    return config.load(None, {key.replace("__", "."): value for key, value in values.items()})


def put_default_models(home: Path) -> None:
    """Files of the right size, without their bytes."""
    for name in store.MANIFEST.defaults:
        for file in store.MANIFEST.get(name).files:
            at = store.folder(name, home) / file.path
            at.parent.mkdir(parents=True, exist_ok=True)
            with at.open("wb") as stream:
                stream.truncate(file.size)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_exit_code_is_0_with_everything_there_and_1_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    port = f"server.port={free_port()}"
    assert main(["doctor", "--set", port]) == 1
    said = capsys.readouterr().out
    for name in store.MANIFEST.defaults:
        assert f"-> run `omni fetch {name}`" in said
    put_default_models(tmp_path)
    assert main(["doctor", "--set", port]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "missing" not in said
    assert "backbone: qwen2.5-coder-0.5b, 491 MB" in said


def test_a_file_cut_short_is_said_alike_by_doctor_serve_and_readyz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    put_default_models(tmp_path)
    file = store.MANIFEST.get("smart-turn-v3").files[0]
    at = store.folder("smart-turn-v3", tmp_path) / file.path
    os.truncate(at, 1000)
    what = f"{at} has 1000 bytes, expected {file.size}"
    to_do = "fetch it again with `omni fetch smart-turn-v3`"

    assert main(["doctor", "--set", f"server.port={free_port()}"]) == 1
    said = capsys.readouterr().out
    assert f"missing  end of turn: {what}\n         -> {to_do}\n" in said

    assert main(["serve", "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"omni serve: {what}; {to_do}"

    server = assemble(settings(home=str(tmp_path)))
    server.worker.start()
    assert server.worker.wait(20) == "failed"
    with TestClient(server.app()) as client:
        answer = client.get("/readyz")
    server.worker.stop()
    assert answer.status_code == 503
    assert answer.json()["reason"] == f"{what}; {to_do}"


def test_every_finding_that_is_not_ok_has_advice(tmp_path: Path) -> None:
    chosen = settings(home=str(tmp_path), model__backbone="qwen", server__port=free_port())
    findings = list(doctor.examine(chosen))
    assert {"ok", "missing"} <= {finding.level for finding in findings}
    assert all(finding.advice for finding in findings if finding.level != "ok")


def test_cores_and_pools_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    findings = list(doctor.examine_system(settings(engine_threads=3)))
    cores = next(finding for finding in findings if "cores" in finding.what)
    assert cores.what == "1 cores: 3 threads for the backbone, 1 for the rest"
    assert cores.level == "note"


def test_spinning_threads_and_little_memory_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(os, "sysconf", lambda name: 1024)
    notes = [f.what for f in doctor.examine_system(settings()) if f.level == "note"]
    assert "OMP_WAIT_POLICY is ACTIVE" in notes
    assert "0.0 GB of memory" in notes


def test_packages_that_are_absent_or_too_old_are_missing() -> None:
    findings = list(
        doctor.examine_packages(
            ["pytest>=1", "pytest<1", "no-such-package>=2", 'other; extra == "x"', "numpy>=2"]
        )
    )
    missing = [finding for finding in findings if finding.level == "missing"]
    assert [finding.what.split()[0] for finding in missing] == ["pytest", "no-such-package"]
    assert missing[1].advice == f'run `{sys.executable} -m pip install "no-such-package>=2"`'
    assert findings[-1].what.startswith("2 packages: pytest ")


def test_kernel_path_is_named() -> None:
    from omni_kernels.linear import backend

    (finding,) = doctor.examine_kernels()
    assert ("torch" if backend() == "torch" else backend()) in finding.what


def test_kernels_switched_off_by_the_environment_are_switched_on_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from omni_kernels import library

    before = library.backend()
    monkeypatch.setenv("OMNI_KERNELS", "torch")
    try:
        library.select("torch")
        (finding,) = doctor.examine_kernels()
    finally:
        library.select("" if before != "torch" else "torch")
    assert (finding.level, finding.advice) == ("note", "unset OMNI_KERNELS")


def test_the_device_is_named_and_a_card_is_called_unproven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = device.Hardware(card=None, has_triton=False)
    monkeypatch.setattr(device, "look", lambda: nothing)
    (finding,) = doctor.examine_device(settings())
    assert (finding.level, finding.what) == (
        "ok",
        "the backbone runs on the CPU (engine.device is cpu)",
    )
    (finding,) = doctor.examine_device(settings(engine__device="cuda"))
    assert finding.level == "missing"
    assert finding.what == 'engine.device is "cuda", but PyTorch finds no card that it can use'
    assert finding.advice == 'set it to "auto" or "cpu"'
    card = device.Hardware(card="Card", has_triton=True)
    monkeypatch.setattr(device, "look", lambda: card)
    cpu, finding = doctor.examine_device(settings())
    assert cpu.level == "ok"
    assert "there is a card, Card" in finding.what
    assert "engine.device=cuda" in finding.advice
    (finding,) = doctor.examine_device(settings(engine__device="auto"))
    assert finding.level == "note"
    assert "runs on Card" in finding.what
    assert "have not run on a card" in finding.what
    assert "engine.device=cpu" in finding.advice


def test_ones_own_weights_are_accepted_when_they_are_a_model(tmp_path: Path) -> None:
    own = tmp_path / "mine.gguf"
    save_gguf(make_hf("qwen2", tied=True, heads=4, kv_heads=2), own, GGMLQuantizationType.F32)
    chosen = settings(model__backbone=str(own))
    finding = next(doctor.examine_models(chosen, tmp_path))
    # It has weights but no tokenizer, which loading would refuse too.
    assert (finding.level, finding.what.split(" field")[0]) == (
        "missing",
        "backbone: the model file has no 'tokenizer.ggml.model'",
    )
    folder = tmp_path / "folder"
    tiny_qwen3_5.make("dense", vocab_size=1200).save_pretrained(folder)
    finding = next(doctor.examine_models(settings(model__backbone=str(folder)), tmp_path))
    assert finding.what == f"backbone: {folder} has no tokenizer.json"
    assert finding.advice == "copy tokenizer.json beside the weights"
    tiny_qwen3_5.make_tokenizer().save_pretrained(folder)
    finding = next(doctor.examine_models(settings(model__backbone=str(folder)), tmp_path))
    assert finding.level == "ok", finding


def test_a_folder_of_an_unknown_architecture_is_not_called_ok(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    finding = next(doctor.examine_models(settings(model__backbone=str(tmp_path)), tmp_path))
    assert finding.level == "missing"
    assert "architecture 'gpt_neo' is not known" in finding.what


def test_what_holds_no_model_is_said_once_with_advice(tmp_path: Path) -> None:
    for own in (tmp_path, tmp_path / "none.gguf"):
        finding = next(doctor.examine_models(settings(model__backbone=str(own)), tmp_path))
        assert finding.level == "missing"
        assert finding.advice
        assert str(own) in finding.what
        assert str(own) not in finding.advice


def test_an_adapter_that_is_not_there_is_missing(tmp_path: Path) -> None:
    folder, nowhere, empty = (tmp_path / name for name in ("model", "nowhere", "empty"))
    tiny_qwen3_5.make("dense", vocab_size=1200).save_pretrained(folder)
    tiny_qwen3_5.make_tokenizer().save_pretrained(folder)
    empty.mkdir()
    for adapter, says in ((nowhere, "there is no file or folder"), (empty, "is no LoRA adapter")):
        chosen = settings(model__backbone=str(folder), model__adapter=str(adapter))
        backbone, finding = itertools.islice(doctor.examine_models(chosen, tmp_path), 2)
        assert backbone.level == "ok"
        assert finding.what.startswith("adapter: ")
        assert finding.level == "missing"
        assert says in finding.what
        assert "model.adapter" in finding.advice


def test_absent_eyes_are_a_note_for_talking_works_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    put_default_models(tmp_path)
    for name in ("nanodet-416", "efficientnet-lite0"):
        shutil.rmtree(store.folder(name, tmp_path))
    assert main(["doctor", "--set", f"server.port={free_port()}"]) == 0
    said = capsys.readouterr().out
    assert "   note  detector: nanodet-416 is not in the model store" in said
    assert "   note  classifier: efficientnet-lite0 is not in the model store" in said
    assert "-> run `omni fetch nanodet-416`; until then conversations work, but nothing" in said
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**8))
    (finding,) = doctor.examine_disk(settings(home=str(tmp_path)), tmp_path)
    assert finding.level == "note"


def test_without_npm_the_note_says_what_it_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "none"))
    monkeypatch.setenv("npm_config_globalconfig", str(tmp_path / "none"))
    monkeypatch.delenv("npm_config_registry", raising=False)
    (finding,) = doctor.examine_fetch_tools()
    assert finding.level == "note"
    assert "detector" in finding.advice
    assert "kokoro-82m" in finding.advice
    monkeypatch.setenv("npm_config_registry", "http://localhost/")  # asked without npm
    assert not list(doctor.examine_fetch_tools())


def test_disk_without_room_for_missing_models_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**8))
    (finding,) = doctor.examine_disk(settings(), tmp_path / "not" / "yet")
    assert finding.level == "missing"
    assert finding.what.startswith("0.1 GB are free at")


def test_port_in_use_names_another_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # Not an HTTP server: the question whether it is Omni must end by itself.
        closer = threading.Thread(target=lambda: taken.accept()[0].close())
        closer.start()
        (finding,) = doctor.examine_port("127.0.0.1", port)
        closer.join()
    assert finding.level == "missing"
    assert f"server.port={port + 1}" in finding.advice


def test_what_is_not_a_port_is_missing() -> None:
    (finding,) = doctor.examine_port("127.0.0.1", 99_999)
    assert (finding.level, finding.what) == ("missing", "port 99999 does not exist")


def test_a_model_of_another_role_is_not_to_be_fetched(tmp_path: Path) -> None:
    findings = list(doctor.examine_models(settings(model__backbone="whisper-base"), tmp_path))
    assert findings[0].what == "backbone: whisper-base is a recogniser, not a backbone"
    assert "fetch" not in findings[0].advice
    assert "smollm2-135m" in findings[0].advice


def test_port_with_omni_behind_it_is_fine() -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        (finding,) = doctor.examine_port("127.0.0.1", server.server_port)
        thread.join()
    assert finding.level == "ok"
    assert finding.what.endswith("Omni is being served there")


@pytest.mark.parametrize(
    ("channels", "level"), [([(1, 0), (0, 2)], "ok"), ([(0, 2)], "note"), ([], "note")]
)
def test_terminal_sound_needs_an_input_and_an_output(
    channels: list[tuple[int, int]], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [{"max_input_channels": i, "max_output_channels": o} for i, o in channels]
    module = types.SimpleNamespace(query_devices=lambda: devices)
    monkeypatch.setitem(sys.modules, "sounddevice", module)  # type: ignore[arg-type]
    (finding,) = doctor.examine_microphone()
    assert finding.level == level


def test_absent_sounddevice_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    (finding,) = doctor.examine_microphone()
    assert finding.level == "note"
    assert f"`{sys.executable} -m pip install sounddevice`" in finding.advice
