"""Compiles planned launches for cards that are not here, and reads what they would occupy.

Used by ``kernels/gpu_table.py`` and the tests. Registers come from ``cuobjdump -res-usage`` and
spills from ``ptxas -v``, all in the Triton package; on AMD from the assembly's metadata.
Needs a process without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from omni_kernels.triton_core import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel occupies; bytes but for registers (a thread's)."""

    registers: int
    spilled: int  # stores and loads to local memory, and stack
    shared: int


def compile_ahead(launch: Launch, target: str) -> Any:
    """Compile ``launch`` for ``target`` as the launcher would specialise it."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        aligned = False
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            aligned = int(value.storage_offset()) * value.element_size() % 16 == 0
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{parameter.name}: {value!r} must be a compile-time constant")
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": launch.contract,
    }
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=options)


def usage(compiled: Any) -> Usage:
    """Read what ``compiled``, of :func:`compile_ahead`, occupies.

    Raises:
        FileNotFoundError: the Triton package came without a tool, named.
    """
    if "amdgcn" in compiled.asm:
        return _usage_amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    capability = int(compiled.metadata.target.arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        said = _run(tool("cuobjdump"), "-res-usage", cubin)
        found = re.search(r"REG:(\d+) STACK:(\d+)", said)
        assert found, said
        # The same assembly again, as Triton does it, only to be told of spills.
        said = _run(
            tool("ptxas-blackwell" if capability >= 100 else "ptxas"),
            "-v",
            "--regAllocOptLevel=2",
            *([] if compiled.metadata.enable_fp_fusion else ["--fmad=false"]),
            f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}",
            ptx,
            "-o",
            Path(folder, "again.cubin"),
        )
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
        assert spills, said
    spilled = int(found[2]) + int(spills[1]) + int(spills[2])
    return Usage(int(found[1]), spilled, compiled.metadata.shared)


def _usage_amd(assembly: str, shared: int) -> Usage:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found, f"{name} is not in the assembly"
        return int(found[1])

    spilled = number("private_segment_fixed_size") + number("vgpr_spill_count")
    return Usage(number("vgpr_count"), spilled + number("sgpr_spill_count"), shared)


def tool(name: str) -> Path:
    """Find a program of the Triton package's NVIDIA folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"this Triton package has no {name}")
    return path


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
