"""Builds the C++ kernels; everything else is declared in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("kernels/omni_kernels")

# A plain shared library loaded with ctypes (no Python.h, no torch headers). Optional: without a
# compiler the install succeeds and the torch fallback is used, which /readyz and `omni doctor` say.
# Instruction sets are chosen at run time, per function: the library itself needs only a baseline
# CPU. No contraction to fused multiply-add: each path's arithmetic is the one that is written.
setup(
    ext_modules=[
        Extension(
            "omni_kernels._cpu",
            sources=sorted(map(str, KERNELS.rglob("*.cpp"))),
            depends=sorted(map(str, KERNELS.rglob("*.h"))),
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++17",
                "-fno-math-errno",
                "-ffp-contract=off",
                "-pthread",
                "-Wno-maybe-uninitialized",  # false alarms of GCC 12 in its own AVX-512 header
                "-Wno-uninitialized",
            ],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
    ]
)
