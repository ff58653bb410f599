"""The shapes of Qwen3.5 that the GPU kernels are compiled and measured for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The shape of one hybrid backbone; heads of Gated DeltaNet are 128 wide."""

    hidden: int
    intermediate: int
    recurrent_layers: int
    attention_layers: int
    heads: tuple[int, int]  # query, key
    head_dim: int
    delta_heads: tuple[int, int]  # key, value

    @property
    def channels(self) -> int:
        """C of the convolution."""
        return 2 * self.delta_heads[0] * 128 + self.delta_heads[1] * 128

    @property
    def delta_width(self) -> int:
        """Columns of the fused projection qkv | b | a | z."""
        return self.channels + 2 * self.delta_heads[1] + self.delta_heads[1] * 128


MODELS = {
    "0.8B": Model(
        hidden=1024,
        intermediate=3584,
        recurrent_layers=18,
        attention_layers=6,
        heads=(8, 2),
        head_dim=256,
        delta_heads=(16, 16),
    ),
    "4B": Model(
        hidden=2560,
        intermediate=9216,
        recurrent_layers=24,
        attention_layers=8,
        heads=(16, 4),
        head_dim=256,
        delta_heads=(16, 32),
    ),
    "27B": Model(
        hidden=5120,
        intermediate=17408,
        recurrent_layers=48,
        attention_layers=16,
        heads=(24, 4),
        head_dim=256,
        delta_heads=(16, 48),
    ),
}
