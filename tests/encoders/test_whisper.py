"""Our network against transformers' on a tiny random checkpoint, in fp32 and on the 8-bit path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_writer import write
from omni_encoders import beam, checkpoint
from omni_encoders.whisper import Whisper
from omni_kernels import library
from transformers import WhisperConfig, WhisperModel

from omni.errors import CancelledError, ModelError

VOCABULARY = 96


@pytest.fixture(scope="module")
def reference() -> WhisperModel:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=80,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    model = WhisperModel(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed_positions" not in name:
                parameter.mul_(3.0)
    return model


def exported(model: WhisperModel) -> dict[str, np.ndarray]:
    """The arrays that CTranslate2's converter would write for ``model``."""
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    out: dict[str, torch.Tensor] = {}

    def linear(ours: str, *theirs: str) -> None:
        out[f"{ours}/weight"] = torch.cat([state[f"{name}.weight"] for name in theirs])
        zeros = [torch.zeros(len(state[f"{name}.weight"])) for name in theirs]
        out[f"{ours}/bias"] = torch.cat(
            [state.get(f"{name}.bias", zero) for name, zero in zip(theirs, zeros, strict=True)]
        )

    def norm(ours: str, theirs: str) -> None:
        out[f"{ours}/gamma"], out[f"{ours}/beta"] = (
            state[f"{theirs}.weight"],
            state[f"{theirs}.bias"],
        )

    for side, num_layers in (("encoder", 2), ("decoder", 3)):
        out[f"{side}/num_heads"] = torch.tensor(4, dtype=torch.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(num_layers):
            ours, theirs = f"{side}/layer_{i}", f"{side}.layers.{i}"
            attention = f"{theirs}.self_attn"
            linear(
                f"{ours}/self_attention/linear_0",
                f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj",
            )  # fmt: skip
            linear(f"{ours}/self_attention/linear_1", f"{attention}.out_proj")
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            if side == "decoder":
                cross = f"{theirs}.encoder_attn"
                linear(f"{ours}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{ours}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{ours}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
    for i in (1, 2):
        out[f"encoder/conv{i}/weight"] = state[f"encoder.conv{i}.weight"]
        out[f"encoder/conv{i}/bias"] = state[f"encoder.conv{i}.bias"]
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in out.items()}


def load(model: WhisperModel, path: Path) -> Whisper:
    write(path, exported(model), {"decoder/projection/weight": "decoder/embeddings/weight"})
    return Whisper(checkpoint.read(path, spec="WhisperSpec"), [(1, 2), (2, 0)])


@pytest.fixture
def torch_path() -> Iterator[None]:
    library.select("torch")
    yield
    library.select("")


def relative_rms(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


MEL = torch.randn(80, 3000, generator=torch.Generator().manual_seed(1))
TOKENS = [1, 5, 17, 33, 2, 60, 7]


def run_both(model: WhisperModel, ours: Whisper) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Our logits, the reference's, and our alignment heads' attention."""
    with torch.no_grad():
        hidden = model(MEL[None], decoder_input_ids=torch.tensor([TOKENS])).last_hidden_state[0]
        expected = hidden @ model.decoder.embed_tokens.weight.T
    heard = ours.encode(MEL, lambda: False)
    hidden, attention = ours.decode(TOKENS, ours.open(), heard)
    return ours.logits(hidden), expected, attention


@pytest.mark.usefixtures("torch_path")
def test_logits_equal_transformers(reference: WhisperModel, tmp_path: Path) -> None:
    got, expected, _ = run_both(reference, load(reference, tmp_path / "model.bin"))
    # The embedding table is kept in fp16, as the checkpoints store it; nothing else is rounded.
    assert relative_rms(got, expected) <= 3e-4


@pytest.mark.usefixtures("torch_path")
def test_logits_equal_transformers_in_fp32(reference: WhisperModel, tmp_path: Path) -> None:
    with torch.no_grad():
        table = reference.decoder.embed_tokens.weight
        table.copy_(table.half().float())
    got, expected, _ = run_both(reference, load(reference, tmp_path / "model.bin"))
    assert relative_rms(got, expected) <= 1e-5


def test_eight_bit_path_stays_close(reference: WhisperModel, tmp_path: Path) -> None:
    got, expected, _ = run_both(reference, load(reference, tmp_path / "model.bin"))
    assert relative_rms(got, expected) <= 0.03


@pytest.mark.usefixtures("torch_path")
def test_alignment_rows_are_the_chosen_heads_distributions(
    reference: WhisperModel, tmp_path: Path
) -> None:
    _, _, attention = run_both(reference, load(reference, tmp_path / "model.bin"))
    assert attention.shape == (len(TOKENS), 2, 1500)
    torch.testing.assert_close(attention.sum(-1), torch.ones(len(TOKENS), 2))


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [6, 1], [2, 2, 3]])
def test_any_chunking_equals_one_pass(
    reference: WhisperModel, tmp_path: Path, chunks: list[int]
) -> None:
    ours = load(reference, tmp_path / "model.bin")
    heard = ours.encode(MEL[:, :400], lambda: False)
    whole, _ = ours.decode(TOKENS, ours.open(), heard)
    state, parts, start = ours.open(), [], 0
    for size in chunks:
        parts.append(ours.decode(TOKENS[start : start + size], state, heard)[0])
        start += size
    assert relative_rms(torch.cat(parts), whole) <= 1e-5


def test_lowering_the_length_takes_tokens_back(reference: WhisperModel, tmp_path: Path) -> None:
    ours = load(reference, tmp_path / "model.bin")
    heard = ours.encode(MEL[:, :400], lambda: False)
    state = ours.open()
    ours.decode(TOKENS[:3], state, heard)
    expected, _ = ours.decode(TOKENS[3:4], state, heard)
    state.length = 3
    ours.decode([90, 91, 92], state, heard)
    state.length = 3
    again, _ = ours.decode(TOKENS[3:4], state, heard)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_branches_go_on_apart_as_separate_caches_would(
    reference: WhisperModel, tmp_path: Path
) -> None:
    ours = load(reference, tmp_path / "model.bin")
    heard = ours.encode(MEL[:, :400], lambda: False)
    state = ours.open()
    ours.decode(TOKENS[:3], state, heard)
    branches = state.branches(3, max_positions=8)
    ours.decode_branches([4, 8, 15], branches, heard)
    branches.select([2, 0, 0])
    hidden = ours.decode_branches([16, 23, 42], branches, heard)
    assert state.length == 3
    for row, tail in enumerate(([15, 16], [4, 23], [4, 42])):
        expected, _ = ours.decode([*TOKENS[:3], *tail], ours.open(), heard)
        assert relative_rms(hidden[row], expected[-1]) <= 1e-5


@pytest.mark.usefixtures("torch_path")
def test_beam_search_finds_at_least_what_greedy_decoding_finds(
    reference: WhisperModel, tmp_path: Path
) -> None:
    ours = load(reference, tmp_path / "model.bin")
    heard = ours.encode(MEL[:, :400], lambda: False)
    size, end = ours.vocabulary_size, 3
    rules = beam.Rules(torch.zeros(size), torch.zeros(size), end)

    def mean_logprob(tokens: list[int]) -> float:
        hidden, _ = ours.decode([*TOKENS[:2], *tokens, end], ours.open(), heard)
        logprobs = ours.logits(hidden).log_softmax(-1)[1:]
        wanted = torch.tensor([*tokens, end])
        return float(logprobs[:-1].gather(1, wanted[:, None]).mean())

    state = ours.open()
    found = beam.search(
        ours, heard, state, TOKENS[:2], rules, max_tokens=6, should_stop=lambda: False
    )
    assert state.length == 0
    assert end not in found
    if len(found) < 6:  # every single token, and none, are among what was searched
        assert mean_logprob(found) >= max(
            mean_logprob([]), *map(mean_logprob, ([t] for t in found))
        )
    with pytest.raises(CancelledError):
        beam.search(ours, heard, state, TOKENS[:2], rules, max_tokens=6, should_stop=lambda: True)


def test_encoder_stops_between_layers(reference: WhisperModel, tmp_path: Path) -> None:
    ours = load(reference, tmp_path / "model.bin")
    asked = 0

    def stop_at_second() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    with pytest.raises(CancelledError):
        ours.encode(MEL, stop_at_second)
    assert asked == 2


def test_missing_array_is_a_model_error(reference: WhisperModel, tmp_path: Path) -> None:
    arrays = exported(reference)
    del arrays["decoder/layer_1/ffn/linear_0/bias"]
    write(tmp_path / "model.bin", arrays, {})
    with pytest.raises(ModelError, match="decoder/layer_1/ffn/linear_0/bias"):
        Whisper(checkpoint.read(tmp_path / "model.bin", spec="WhisperSpec"))
