"""The weights and shape of one Gated DeltaNet layer, between its two projections.

Letters: H key heads, HV value heads (HV / H of them read one key head), K and V widths of a key and
a value head, C = 2 H K + HV V channels of the convolution, W its width, N tokens.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch

from omni_kernels.tensors import require

LANES = 4
"""Head widths are multiples of this: the narrowest vector any path uses."""
MAX_WIDTH = 256
"""Widest head: the scratch of a thread has this size."""
MAX_TAPS = 8
"""Longest convolution."""


class Layer(ctypes.Structure):
    """``DeltaLayer`` of gated_delta.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("H", "HV", "K", "V", "W")),
        *((name, ctypes.c_void_p) for name in ("taps", "rate", "dt_bias", "norm")),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta:
    """One layer's weights; tensors are kept, not copied, and must not change afterwards.

    Raises:
        ValueError: heads, widths or a tensor do not fit.
    """

    num_key_heads: int
    num_value_heads: int  # a multiple of num_key_heads; head hv reads key head hv // (HV / H)
    key_dim: int  # of one head; a multiple of 4, at most 256
    value_dim: int  # of one head; a multiple of 4, at most 256
    conv_weight: torch.Tensor  # fp32 [C, W], the newest token's tap last
    a_log: torch.Tensor  # fp32 [HV]
    dt_bias: torch.Tensor  # fp32 [HV]
    norm: torch.Tensor  # fp32 [V], the plain factor (not 1 + w)
    eps: float  # added to the mean square of the gated norm

    taps: torch.Tensor = field(init=False, repr=False)
    """fp32 [W, C]: ``conv_weight`` with the channels side by side."""
    rate: torch.Tensor = field(init=False, repr=False)
    """fp32 [HV]: exp(a_log); the log of the decay is -rate * softplus(a + dt_bias)."""
    channels: int = field(init=False)
    """C: q of all key heads, k of all key heads, v of all value heads."""
    journal_width: int = field(init=False)
    """C + 2 HV: what a token contributes to the state, raw: qkv | b | a."""
    input_width: int = field(init=False)
    """C + 2 HV + HV V: qkv | b | a | z."""
    output_width: int = field(init=False)
    """HV V."""
    recurrent_shape: tuple[int, int, int] = field(init=False)
    """(HV, V, K): the state of one slot."""
    conv_shape: tuple[int, int] = field(init=False)
    """(W - 1, C): the window of one slot."""
    layer: Layer = field(init=False, repr=False, compare=False)
    """The same for the C++ library; its pointers live as long as this object."""
    layer_pointer: int = field(init=False, repr=False, compare=False)
    """Address of ``layer``."""

    def __post_init__(self) -> None:
        heads, value_heads = self.num_key_heads, self.num_value_heads
        if heads < 1 or value_heads < 1 or value_heads % heads:
            raise ValueError(f"{value_heads} value heads are no multiple of {heads} key heads")
        for name, width in (("key", self.key_dim), ("value", self.value_dim)):
            if width < 1 or width % LANES or width > MAX_WIDTH:
                raise ValueError(
                    f"{name} heads of width {width}: expected a multiple of {LANES} up to "
                    f"{MAX_WIDTH}"
                )
        channels = 2 * heads * self.key_dim + value_heads * self.value_dim
        width = self.conv_weight.shape[-1]
        if not 2 <= width <= MAX_TAPS:
            raise ValueError(f"a convolution of width {width}: expected 2 to {MAX_TAPS}")
        require("conv_weight", self.conv_weight, (channels, width))
        require("a_log", self.a_log, (value_heads,))
        require("dt_bias", self.dt_bias, (value_heads,))
        require("norm", self.norm, (self.value_dim,))
        output = value_heads * self.value_dim
        for name, value in (
            ("taps", self.conv_weight.t().contiguous()),
            ("rate", self.a_log.exp()),
            ("channels", channels),
            ("journal_width", channels + 2 * value_heads),
            ("input_width", channels + 2 * value_heads + output),
            ("output_width", output),
            ("recurrent_shape", (value_heads, self.value_dim, self.key_dim)),
            ("conv_shape", (width - 1, channels)),
        ):
            object.__setattr__(self, name, value)
        pointers = (t.data_ptr() for t in (self.taps, self.rate, self.dt_bias, self.norm))
        shape = (heads, value_heads, self.key_dim, self.value_dim, width)
        layer = Layer(*shape, *pointers, self.eps)
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "layer_pointer", ctypes.addressof(layer))
