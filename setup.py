"""Builds the C++ kernels; everything else is declared in pyproject.toml."""

from setuptools import Extension, setup

# A plain shared library loaded with ctypes (no Python.h, no torch headers). Optional: without a
# compiler the install succeeds and the torch fallback is used, which /readyz and `omni doctor` say.
setup(
    ext_modules=[
        Extension(
            "omni_kernels._cpu",
            sources=["kernels/omni_kernels/linear/cpu.cpp"],
            extra_compile_args=["-O3", "-std=c++17", "-fno-math-errno", "-pthread"],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
    ]
)
