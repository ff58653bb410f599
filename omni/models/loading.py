"""Opens a model: a GGUF file or a Hugging Face folder becomes backbone, tokenizer and template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omni.errors import ModelError
from omni.models import registry, repacked, weights
from omni.models.backbone import DecoderStack
from omni.models.family import Family
from omni.models.gguf_file import GGUFFile
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""(parameters repacked so far, parameters in all); called on a first start only."""

Precision = Literal["int8", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything that a conversation needs of a model."""

    backbone: DecoderStack
    tokenizer: Tokenizer
    template: ChatTemplate
    name: str
    context_tokens: int


def load(
    path: Path | str,
    *,
    home: Path,
    progress: Progress | None = None,
    precision: Precision = "int8",
) -> LoadedModel:
    """Open the GGUF file or the Hugging Face folder at ``path``.

    The first time, int8 weights are repacked into ``home / "repacked"``; later starts map that.
    ``precision="fp32"`` dequantises everything instead: the reference, large and slow.

    Raises:
        ModelError: missing, damaged, of an unknown architecture, or short of tensors.
    """
    path = _only_gguf(Path(path))
    if path.is_dir():
        config = weights.read_hf_config(path)
        family = registry.family_of(config.get("model_type"))
        backbone = load_backbone(path, home=home, progress=progress, precision=precision)
        tokenizer, name = Tokenizer.from_file(path / "tokenizer.json"), path.name
    else:
        file = GGUFFile(path)
        family = registry.family_of(file.metadata.get("general.architecture"))
        backbone = _from_gguf(file, family, home, progress, precision)
        tokenizer = Tokenizer.from_gguf(file.metadata)
        name = str(file.metadata.get("general.name", path.stem))
    if tokenizer.vocab_size > backbone.vocab_size:
        raise ModelError(
            f"{path} has {tokenizer.vocab_size} tokens but only {backbone.vocab_size} embeddings"
        )
    return LoadedModel(
        backbone=backbone,
        tokenizer=tokenizer,
        template=family.template(tokenizer),
        name=name,
        context_tokens=backbone.max_positions,
    )


def load_backbone(
    path: Path | str,
    *,
    home: Path,
    progress: Progress | None = None,
    precision: Precision = "int8",
) -> DecoderStack:
    """Open the weights alone (a folder need not have a tokenizer); as :func:`load` otherwise."""
    path = _only_gguf(Path(path))
    if not path.is_dir():
        file = GGUFFile(path)
        family = registry.family_of(file.metadata.get("general.architecture"))
        return _from_gguf(file, family, home, progress, precision)
    description = weights.read_hf_config(path)
    family = registry.family_of(description.get("model_type"))
    config = family.config_from_hf(description)
    folder = weights.SafetensorsFolder(path)
    plan = family.plan(config, "hf", folder.names)
    weights.check(plan, folder, family.ignored(config))
    if precision == "fp32":
        return DecoderStack(config, weights.read_dense(plan, folder))
    key = repacked.key_of([path / "config.json", *folder.files])
    return DecoderStack(
        config, repacked.open_or_make(home / "repacked" / key, plan, folder, progress)
    )


def _only_gguf(path: Path) -> Path:
    """The GGUF file of a folder that holds just one, else ``path`` itself."""
    files = list(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else path


def _from_gguf(
    file: GGUFFile, family: Family, home: Path, progress: Progress | None, precision: Precision
) -> DecoderStack:
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = family.config_from_gguf(file.metadata, shapes)
    plan = family.plan(config, "gguf", file.names)
    weights.check(plan, file, family.ignored(config))
    if precision == "fp32":
        return DecoderStack(config, weights.read_dense(plan, file))
    key = repacked.key_of([file.path])
    return DecoderStack(
        config, repacked.open_or_make(home / "repacked" / key, plan, file, progress)
    )
