"""ggml's own gated delta rule, called through the library inside the ``xllamacpp`` wheel.

Only the rule: convolution, gates, unit vectors and gated norm are other operations there and are
not counted. Its new state lands in the operation's output; copying it back is not counted either.
The wheel is compiled for AVX2.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _Plan(ctypes.Structure):
    """``ggml_cplan``; what follows these fields is none of our business, but needs room."""

    _fields_ = (
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("rest", ctypes.c_char * 256),
    )


_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ggml_init": (c_void_p, (_Init,)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_new_tensor_4d": (c_void_p, (c_void_p, c_int, *(c_int64,) * 4)),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    # context, q, k, v, g, beta, state, snapshots
    "ggml_gated_delta_net": (c_void_p, (*(c_void_p,) * 7, c_int64)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_graph_plan": (_Plan, (c_void_p, c_int, c_void_p)),
    "ggml_graph_compute": (c_int, (c_void_p, c_void_p)),
}
_F32 = 0  # GGML_TYPE_F32


def load() -> ctypes.CDLL | None:
    """Return ggml, or None when the wheel is missing or has another interface."""
    found = importlib.util.find_spec("xllamacpp")
    for place in found.submodule_search_locations or () if found else ():
        for path in Path(place).glob("xllamacpp*.so"):
            library = ctypes.CDLL(str(path))
            try:
                for name, (result, arguments) in _SIGNATURES.items():
                    function = getattr(library, name)
                    function.restype, function.argtypes = result, arguments
            except AttributeError:
                return None
            return library
    return None


class Rule:
    """One operation over ``copies`` states, each with a graph of its own.

    Letters: T tokens, H key heads, HV value heads, D width of all heads. Head hv reads key head
    hv % H, so value heads come in another order than ours.
    """

    def __init__(
        self, ggml: ctypes.CDLL, shape: tuple[int, int, int, int], copies: int, threads: int
    ) -> None:
        tokens, heads, value_heads, dim = shape
        self._ggml = ggml
        state = value_heads * dim * dim
        output = state + tokens * value_heads * dim
        floats = copies * (state + output) + tokens * dim * 4 * value_heads
        self._context = ggml.ggml_init(_Init(4 * floats + (copies + 1) * 2**16, None, False))
        q, self.q = self._tensor(dim, heads, tokens)
        k, self.k = self._tensor(dim, heads, tokens)
        v, self.v = self._tensor(dim, value_heads, tokens)
        g, self.g = self._tensor(1, value_heads, tokens)
        beta, self.beta = self._tensor(1, value_heads, tokens)
        self.states: list[torch.Tensor] = []  # [HV, V, K]
        self.new_states: list[torch.Tensor] = []
        self._graphs, self._work = [], []
        for _ in range(copies):
            old, memory = self._tensor(dim, dim, value_heads)
            self.states.append(memory)
            result = ggml.ggml_gated_delta_net(self._context, q, k, v, g, beta, old, 1)
            new = self._memory(result, output)[output - state :]
            self.new_states.append(new.view(value_heads, dim, dim))
            graph = ggml.ggml_new_graph_custom(self._context, 8, False)
            ggml.ggml_build_forward_expand(graph, result)
            plan = ggml.ggml_graph_plan(graph, threads, None)
            work = ctypes.create_string_buffer(plan.work_size + 64)
            plan.work_data = ctypes.addressof(work)
            self._graphs.append((graph, plan))
            self._work.append(work)

    def _tensor(self, *sizes: int) -> tuple[int, torch.Tensor]:
        """Return ggml's tensor and our view of it, sizes the other way round."""
        tensor = self._ggml.ggml_new_tensor_4d(self._context, _F32, *sizes, 1)
        count = 1
        for size in sizes:
            count *= size
        return tensor, self._memory(tensor, count).view(*reversed(sizes))

    def _memory(self, tensor: int, count: int) -> torch.Tensor:
        address = self._ggml.ggml_get_data(tensor)
        return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)

    def call(self) -> Callable[[int], object]:
        """Return a function of the round that takes the states in turn."""
        compute = self._ggml.ggml_graph_compute
        graphs = [(graph, ctypes.byref(plan)) for graph, plan in self._graphs]
        return lambda i: compute(*graphs[i % len(graphs)])

    def close(self) -> None:
        self._ggml.ggml_free(self._context)
