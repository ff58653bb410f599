"""Tiny random models and a small driver for backbones, shared by the model tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from omni_kernels.linear import GROUP
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from omni.models.batch import Backbone, Batch, StateView

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}


def make_hf(
    architecture: str, *, tied: bool, heads: int, kv_heads: int, seed: int = 0
) -> PreTrainedModel:
    """A random fp32 model of transformers; every parameter, biases and norms too, is drawn."""
    torch.manual_seed(seed)
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_kind, model_kind = kinds[architecture]
    config = config_kind(
        **SHAPE,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
    )
    model = model_kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() == 1 else 0.15)
            if "norm" in name:
                parameter.add_(1.0)
    return model


def save_gguf(
    model: PreTrainedModel,
    path: Path,
    kind: gguf.GGMLQuantizationType,
    others: Mapping[str, gguf.GGMLQuantizationType] = MappingProxyType({}),
) -> None:
    """Write a transformers model as llama.cpp's converter would, matrices in ``kind``.

    ``others``: part of a matrix's name -> its kind.
    """
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        for part, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if arch == "llama" and part in name:  # LlamaModel.permute of the converter
                halves = array.reshape(heads, 2, -1, *array.shape[1:])
                array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        chosen = next((other for part, other in others.items() if part in name), kind)
        writer_kind = chosen if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, writer_kind)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=writer_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    for old, new in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ):
        name = name.replace(old, new)
    return name


class Driver:
    """Plays the engine: gives sequences scattered pages and runs steps of any shape."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_sequences: int = 1,
        page_tokens: int = 4,
        pages: int = 40,
        journal: int = 0,
    ) -> None:
        self.backbone = backbone
        spec = backbone.state_spec
        num_pages = 1 + num_sequences * pages
        shape = (
            spec.num_attention,
            2,
            num_pages,
            page_tokens,
            spec.num_kv_heads,
            spec.head_dim,
        )
        slots = num_sequences + 1
        recurrent, conv = spec.recurrent_shape, spec.conv_shape
        self.state = StateView(
            kv=torch.full(shape, torch.nan, dtype=spec.kv_dtype),
            recurrent=torch.zeros(slots, spec.num_recurrent, *recurrent) if recurrent else None,
            conv=torch.zeros(slots, spec.num_recurrent, *conv) if conv else None,
            journal=torch.full((slots, spec.num_recurrent, journal, spec.journal_width), torch.nan)
            if journal
            else None,
        )
        self._journal_rows = [-1] * num_sequences  # next row of each; -1: none is kept
        order = torch.randperm(num_pages - 1, generator=torch.Generator().manual_seed(1)) + 1
        self._tables = [tuple(part.tolist()) for part in order.chunk(num_sequences)]
        self.computed = [0] * num_sequences

    def journal_from(self, sequence: int) -> None:
        """Keep a journal of the sequence's tokens from here on."""
        self._journal_rows[sequence] = 0

    def rewind(self, sequence: int, num_tokens: int) -> None:
        """Go on after ``num_tokens`` tokens; the recurrent state must be that of this place."""
        self.computed[sequence] = num_tokens
        self._journal_rows[sequence] = -1

    def step(self, new: Sequence[Sequence[int]], *, all_rows: bool = True) -> torch.Tensor:
        """Compute ``new[b]`` further tokens of each sequence; logits of all rows, or the last."""
        active = [b for b, tokens in enumerate(new) if tokens]
        starts = [0]
        for b in active:
            starts.append(starts[-1] + len(new[b]))
        positions = [
            position
            for b in active
            for position in range(self.computed[b], self.computed[b] + len(new[b]))
        ]
        rows = range(starts[-1]) if all_rows else [end - 1 for end in starts[1:]]
        page_tokens = self.state.page_tokens
        batch = Batch(
            token_ids=torch.tensor([token for b in active for token in new[b]]),
            positions=torch.tensor(positions),
            cu_seqlens=tuple(starts),
            num_computed=tuple(self.computed[b] for b in active),
            page_table=tuple(
                self._tables[b][: -(-(self.computed[b] + len(new[b])) // page_tokens)]
                for b in active
            ),
            slots=tuple(b + 1 for b in active),
            logits_rows=torch.tensor(list(rows)),
            journal_starts=None
            if self.state.journal is None
            else tuple(self._journal_rows[b] for b in active),
        )
        for b in active:
            self.computed[b] += len(new[b])
            if self._journal_rows[b] >= 0:
                self._journal_rows[b] += len(new[b])
        return self.backbone.forward(batch, self.state)


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


assert SHAPE["hidden_size"] % GROUP == 0
assert SHAPE["intermediate_size"] % GROUP == 0
