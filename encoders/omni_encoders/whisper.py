"""Whisper's network in plain torch: an encoder over mel frames and a decoder with a KV cache.

Called by :mod:`omni_encoders.recogniser`, which owns tokens, drafts and words; this file knows
tensors only. Radford et al. 2022, arXiv 2212.04356.

Letters: T encoder frames (20 ms), M decoder positions computed at once, P positions computed
before, H heads, K head width, D = H * K model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omni_kernels import linear as kernels
from torch import Tensor

from omni.errors import CancelledError, ModelError

FRAMES_PER_MEL = 2  # the second convolution halves the frame rate: 20 ms per encoder frame
MAX_MEL_FRAMES = 3000  # 30 s: length of the encoder's position table

Arrays = Mapping[str, NDArray[np.generic]]
StopCheck = Callable[[], bool]


def is_quantised() -> bool:
    """Whether models loaded now compute in 8 bits; the torch and scalar paths would be slower."""
    return kernels.backend() not in ("torch", "scalar")


@dataclass(frozen=True, slots=True)
class Heard:
    """An encoded window as the decoder reads it: per decoder layer ``keys`` [H, K, T] (already
    scaled by K^-0.5) and ``values`` [H, T, K]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(slots=True)
class DecoderState:
    """Self-attention cache; positions from ``length`` on are free and hold garbage.

    ``keys`` and ``values``: [num_layers, H, max positions, K]. Lowering ``length`` truncates.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    def branches(self, num_branches: int, max_positions: int) -> Branches:
        """Copies of this cache that go on apart, with room for ``max_positions``."""
        layers, heads, _, width = self.keys.shape
        shape = (layers, num_branches, heads, max_positions, width)
        new = Branches(keys=torch.empty(shape), values=torch.empty(shape), length=self.length)
        new.keys[..., : self.length, :] = self.keys[:, None, :, : self.length]
        new.values[..., : self.length, :] = self.values[:, None, :, : self.length]
        return new


@dataclass(slots=True)
class Branches:
    """Self-attention caches of B hypotheses of one window, all ``length`` positions long.

    ``keys`` and ``values``: [num_layers, B, H, max positions, K].
    """

    keys: Tensor
    values: Tensor
    length: int

    def select(self, indices: Sequence[int]) -> None:
        """Make branch ``indices[i]`` the new branch i."""
        if list(indices) != list(range(self.keys.shape[1])):
            end = self.length
            self.keys[..., :end, :] = self.keys[:, list(indices), :, :end]
            self.values[..., :end, :] = self.values[:, list(indices), :, :end]


class _Linear:
    """``x @ weight.T + bias``, in 8 bits where a kernel is compiled, else in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._bias = bias
        self._packed = kernels.pack(weight) if is_quantised() else None
        self._weight = None if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed:
            return kernels.linear(x.contiguous(), self._packed, self._bias)
        assert self._weight is not None
        return F.linear(x, self._weight, self._bias)


class _Convolution:
    """Width 3, padding 1, over the rows of ``x`` [T, C] -> [ceil(T / stride), D], then GELU.

    A linear over three neighbouring rows: so it runs on the same 8-bit kernel.
    """

    def __init__(self, weights: _Weights, name: str, stride: int) -> None:
        weight = weights.tensor(f"{name}/weight")  # [D, C, 3]
        self.in_channels = weight.shape[1]
        self._stride = stride
        self._linear = _Linear(weight.flatten(1), weights.tensor(f"{name}/bias"))

    def __call__(self, x: Tensor) -> Tensor:
        rows = F.pad(x, (0, 0, 1, 1)).unfold(0, 3, self._stride)  # [T', C, 3]
        return F.gelu(self._linear(rows.flatten(1)))


class _Norm:
    """Layer normalisation over the last dimension."""

    def __init__(self, gamma: Tensor, beta: Tensor) -> None:
        self._gamma = gamma
        self._beta = beta
        self._shape = [len(gamma)]

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self._gamma, self._beta)


class _Weights:
    """Named arrays, taken as float32 tensors; an absent name is a corrupt file."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def tensor(self, name: str) -> Tensor:
        try:
            array = self._arrays[name]
        except KeyError:
            raise ModelError(f"the model file has no {name!r}; delete it and fetch again") from None
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def half(self, name: str) -> Tensor:
        return self.tensor(name).half()

    def linear(self, name: str) -> _Linear:
        return _Linear(self.tensor(f"{name}/weight"), self.tensor(f"{name}/bias"))

    def norm(self, name: str) -> _Norm:
        return _Norm(self.tensor(f"{name}/gamma"), self.tensor(f"{name}/beta"))

    def count(self, prefix: str) -> int:
        """Number of consecutive ``prefix``_0, _1, ... layers."""
        n = 0
        while any(name.startswith(f"{prefix}_{n}/") for name in self._arrays):
            n += 1
        return n

    def integer(self, name: str) -> int:
        return int(self.tensor(name))


class _FeedForward:
    def __init__(self, weights: _Weights, name: str) -> None:
        self._norm = weights.norm(f"{name}/layer_norm")
        self._up = weights.linear(f"{name}/linear_0")
        self._down = weights.linear(f"{name}/linear_1")

    def __call__(self, x: Tensor) -> Tensor:
        return x + self._down(F.gelu(self._up(self._norm(x))))


class _EncoderLayer:
    def __init__(self, weights: _Weights, name: str, num_heads: int) -> None:
        self._num_heads = num_heads
        self._norm = weights.norm(f"{name}/self_attention/layer_norm")
        self._qkv = weights.linear(f"{name}/self_attention/linear_0")
        self._out = weights.linear(f"{name}/self_attention/linear_1")
        self._feed_forward = _FeedForward(weights, f"{name}/ffn")

    def __call__(self, x: Tensor) -> Tensor:
        num_frames, width = x.shape
        qkv = self._qkv(self._norm(x)).view(num_frames, 3, self._num_heads, -1)
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each [1, H, T, K]
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self._out(mixed[0].transpose(0, 1).reshape(num_frames, width))
        return self._feed_forward(x)


class _DecoderLayer:
    def __init__(self, weights: _Weights, name: str, num_heads: int) -> None:
        self._num_heads = num_heads
        self._self_norm = weights.norm(f"{name}/self_attention/layer_norm")
        self._qkv = weights.linear(f"{name}/self_attention/linear_0")
        self._self_out = weights.linear(f"{name}/self_attention/linear_1")
        self._cross_norm = weights.norm(f"{name}/attention/layer_norm")
        self._query = weights.linear(f"{name}/attention/linear_0")
        self._memory = weights.linear(f"{name}/attention/linear_1")
        self._cross_out = weights.linear(f"{name}/attention/linear_2")
        self._feed_forward = _FeedForward(weights, f"{name}/ffn")

    def remember(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys [H, K, T] (scaled) and values [H, T, K] of ``encoded`` [T, D]."""
        memory = self._memory(encoded).view(len(encoded), 2, self._num_heads, -1)
        keys = memory[:, 0].permute(1, 2, 0) * memory.shape[-1] ** -0.5
        return keys.contiguous(), memory[:, 1].transpose(0, 1).contiguous()

    def __call__(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor],
        start: int,
        mask: Tensor | None,
        heard_keys: Tensor,
        heard_values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One layer over ``x`` [M, D]; writes its keys and values behind ``start`` into ``past``.

        ``past`` [H, P, K]: the rows of ``x`` follow one another. [M, H, P, K]: each row is the
        next position of a cache of its own.

        Returns the new x [M, D] and the cross-attention weights [H, M, T].
        """
        num_positions, width = x.shape
        qkv = self._qkv(self._self_norm(x)).view(num_positions, 3, self._num_heads, -1)
        keys, values = past
        if keys.dim() == 4:
            q, k, v = qkv.permute(1, 0, 2, 3).unsqueeze(3)  # each [M, H, 1, K]
            end = start + 1
        else:
            q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each [1, H, M, K]
            keys, values = keys[None], values[None]
            end = start + num_positions
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        mixed = F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=mask
        )  # [M, H, 1, K] or [1, H, M, K]
        x = x + self._self_out(mixed.transpose(1, 2).reshape(num_positions, width))
        query = self._query(self._cross_norm(x)).view(num_positions, self._num_heads, -1)
        attention = torch.bmm(query.transpose(0, 1), heard_keys).softmax(-1)  # [H, M, T]
        mixed = torch.bmm(attention, heard_values)  # [H, M, K]
        x = x + self._cross_out(mixed.transpose(0, 1).reshape(num_positions, width))
        return self._feed_forward(x), attention


class Whisper:
    """The whole network. Stateless after loading: windows and caches are passed explicitly."""

    def __init__(
        self, arrays: Arrays, alignment_heads: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Build from the arrays of a CTranslate2 ``WhisperSpec`` file.

        ``alignment_heads`` (layer, head) are those whose attention follows the words in time;
        without them, all heads of the upper half of the decoder.

        Raises:
            ModelError: an array is missing or its shape does not fit.
        """
        weights = _Weights(arrays)
        num_heads = weights.integer("encoder/num_heads")
        self._conv1 = _Convolution(weights, "encoder/conv1", stride=1)
        self._conv2 = _Convolution(weights, "encoder/conv2", stride=FRAMES_PER_MEL)
        self.num_mels = self._conv1.in_channels
        self._encoder_positions = weights.tensor("encoder/position_encodings/encodings")
        self._encoder_layers = [
            _EncoderLayer(weights, f"encoder/layer_{i}", num_heads)
            for i in range(weights.count("encoder/layer"))
        ]
        self._encoder_norm = weights.norm("encoder/layer_norm")
        self._num_heads = weights.integer("decoder/num_heads")
        self._embeddings = weights.half("decoder/embeddings/weight")  # [V, D]; rows are looked up
        self._decoder_positions = weights.tensor("decoder/position_encodings/encodings")
        self._decoder_layers = [
            _DecoderLayer(weights, f"decoder/layer_{i}", self._num_heads)
            for i in range(weights.count("decoder/layer"))
        ]
        self._decoder_norm = weights.norm("decoder/layer_norm")
        self._projection = _Linear(weights.tensor("decoder/projection/weight"), None)
        self.vocabulary_size = len(self._embeddings)
        self.max_positions = len(self._decoder_positions)
        upper = range(len(self._decoder_layers) // 2, len(self._decoder_layers))
        chosen = alignment_heads or [(i, h) for i in upper for h in range(self._num_heads)]
        self._alignment_heads = {
            layer: [h for i, h in chosen if i == layer] for layer in sorted({i for i, _ in chosen})
        }

    @torch.inference_mode()
    def encode(self, mel: Tensor, should_stop: StopCheck) -> Heard:
        """Encode ``mel`` [num_mels, 2T], T <= 1500.

        Raises:
            CancelledError: ``should_stop()`` became true between two layers.
        """
        x = self._conv2(self._conv1(mel.T))  # [T, D]
        x = x + self._encoder_positions[: len(x)]
        for layer in self._encoder_layers:
            _check(should_stop)
            x = layer(x)
        x = self._encoder_norm(x)
        memories = []
        for decoder_layer in self._decoder_layers:
            _check(should_stop)
            memories.append(decoder_layer.remember(x))
        keys, values = zip(*memories, strict=True)
        return Heard(keys=keys, values=values)

    def open(self) -> DecoderState:
        """An empty cache."""
        width = self._embeddings.shape[1]
        shape = (
            len(self._decoder_layers),
            self._num_heads,
            self.max_positions,
            width // self._num_heads,
        )
        return DecoderState(keys=torch.empty(shape), values=torch.empty(shape))

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], state: DecoderState, heard: Heard
    ) -> tuple[Tensor, Tensor]:
        """Extend ``state`` by ``tokens`` [M] in one forward pass.

        Returns:
            hidden [M, D] for :meth:`logits`, and the alignment heads' attention [M, heads, T].
        """
        start, num_positions = state.length, len(tokens)
        end = start + num_positions
        x = self._embeddings[list(tokens)].float() + self._decoder_positions[start:end]
        mask = None
        if num_positions > 1:  # position i sees everything up to start + i
            mask = torch.ones(num_positions, end, dtype=torch.bool).tril(start)
        aligned = []
        for i, layer in enumerate(self._decoder_layers):
            past = (state.keys[i], state.values[i])
            x, attention = layer(x, past, start, mask, heard.keys[i], heard.values[i])
            if heads := self._alignment_heads.get(i):
                aligned.append(attention[heads])
        state.length = end
        return self._decoder_norm(x), torch.cat(aligned).transpose(0, 1)

    @torch.inference_mode()
    def decode_branches(self, tokens: Sequence[int], branches: Branches, heard: Heard) -> Tensor:
        """Extend each of the B branches by one of ``tokens`` [B]; hidden [B, D]."""
        start = branches.length
        x = self._embeddings[list(tokens)].float() + self._decoder_positions[start]
        for i, layer in enumerate(self._decoder_layers):
            past = (branches.keys[i], branches.values[i])
            x, _ = layer(x, past, start, None, heard.keys[i], heard.values[i])
        branches.length = start + 1
        return self._decoder_norm(x)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: [M, D] -> [M, V]."""
        return self._projection(hidden)


def _check(should_stop: StopCheck) -> None:
    if should_stop():
        raise CancelledError("the recogniser's pass was stopped")
