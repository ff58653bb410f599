"""The C++ kernels compiled for ARM and run by an emulator, on a machine that is none.

Values are the processor's, speed is not: nothing is measured here.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

COMPILER = "aarch64-linux-gnu-g++"  # Debian: g++-aarch64-linux-gnu
EMULATOR = "qemu-aarch64-static"  # Debian: qemu-user-static
OLDER, NEWER = "cortex-a53", "cortex-a76"  # without and with dot products
KERNELS = Path(__file__).parents[2] / "kernels" / "omni_kernels"
FLAGS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off"),  # as in setup.py
    *("-Wall", "-Wextra", "-Werror", "-pthread", "-static"),
)

Argument = torch.Tensor | int | float | None


def build(folder: Path) -> Path:
    """Compile every C++ file of the kernels into one program for ARM in ``folder``."""
    for program, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user-static")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing (Debian's package {package})")
    known = subprocess.run([EMULATOR, "-cpu", "help"], capture_output=True, text=True, check=False)
    if NEWER not in known.stdout:
        pytest.skip(f"{EMULATOR} does not know {NEWER}, as it does from version 7.1 on")
    program = folder / "emulated"
    sources = [Path(__file__).with_suffix(".cpp"), *sorted(KERNELS.rglob("*.cpp"))]
    command = [COMPILER, *FLAGS, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


class Emulated:
    """A process of the program :func:`build` made, on a processor that the emulator knows."""

    def __init__(self, program: Path, processor: str) -> None:
        command = [EMULATOR, "-cpu", processor, str(program)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the process, which must have been well until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=30) == 0

    def call(self, name: str, *arguments: Argument) -> int:
        """Call a function of the library (``gated_delta``: with the layer's fields one by one).

        Tensors are contiguous and are written to as the function writes to its pointers.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message = [struct.pack("<q", len(name)), name.encode(), struct.pack("<q", len(arguments))]
        message.extend(map(_encoded, arguments))
        try:
            self._process.stdin.write(b"".join(message))
            self._process.stdin.flush()
            (result,) = struct.unpack("<q", _read(self._process.stdout, 8))
            for tensor in arguments:
                if isinstance(tensor, torch.Tensor):
                    array = tensor.numpy()
                    answer = _read(self._process.stdout, array.nbytes)
                    array[...] = np.frombuffer(answer, array.dtype).reshape(array.shape)
        except (BrokenPipeError, EOFError) as error:
            code = self._process.wait(timeout=30)
            raise AssertionError(f"{name} ended the emulated process with {code}") from error
        assert isinstance(result, int)
        return result


def _encoded(argument: Argument) -> bytes:
    if argument is None:
        return b"n"
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        content = argument.numpy().tobytes()
        return b"b" + struct.pack("<q", len(content)) + content
    if isinstance(argument, float):
        return b"f" + struct.pack("<f", argument)
    return b"i" + struct.pack("<q", argument)


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
