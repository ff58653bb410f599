"""Opens a model: a GGUF file or a Hugging Face folder becomes backbone, tokenizer and template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from omni_encoders.vision import VisionConfig, VisionTower

from omni.errors import ModelError
from omni.models import registry, repacked, weights
from omni.models.adapter import Adapter
from omni.models.backbone import BackboneConfig, DecoderStack
from omni.models.device import Device, Stack, build_stack
from omni.models.family import Family, Format
from omni.models.gguf_file import GGUFFile
from omni.models.parameters import Parameter
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer
from omni.models.weights import Entry, SafetensorsFolder

Progress = Callable[[int, int], None]
"""(parameters repacked so far, parameters in all); called on a first start only."""

Precision = Literal["int8", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything that a conversation needs of a model."""

    backbone: Stack
    tokenizer: Tokenizer
    template: ChatTemplate
    name: str
    context_tokens: int
    vision: VisionTower | None = None


def load(
    path: Path | str,
    *,
    home: Path,
    progress: Progress | None = None,
    precision: Precision = "int8",
    adapter: Path | str | None = None,
    thinking: bool = False,
    device: Device = "cpu",
) -> LoadedModel:
    """Open the GGUF file or the Hugging Face folder at ``path``.

    The first time, int8 weights are repacked into ``home / "repacked"``; later starts map that.
    ``precision="fp32"`` dequantises everything instead: the reference, large and slow. ``adapter``
    is the folder of a LoRA adapter that is merged into the weights. With ``thinking`` answers
    begin with a thought. ``device`` is where the backbone runs (:mod:`omni.models.device`).

    Raises:
        ModelError: missing, damaged, of an unknown architecture, or short of tensors; or asked to
            think and not made to; or of a shape that ``device`` cannot run.
    """
    source = _open(Path(path))
    tokenizer, name = _tokenizer(source)
    template = source.family.template(tokenizer, thinking)
    values = _values(source, home, progress, precision, adapter)  # slow, so after all refusals
    backbone = build_stack(source.config, values, device)
    return LoadedModel(
        backbone=backbone,
        tokenizer=tokenizer,
        template=template,
        name=name,
        context_tokens=backbone.max_positions,
        vision=_vision(source, precision),
    )


def examine(path: Path | str, *, adapter: Path | str | None = None, thinking: bool = False) -> None:
    """Refuse what :func:`load` would refuse by descriptions, names and shapes: reads no weight.

    Raises:
        ModelError: as :func:`load`, but for weights that are not as described.
    """
    source = _open(Path(path))
    source.family.template(_tokenizer(source)[0], thinking)
    _plan(source, adapter)


def load_backbone(
    path: Path | str,
    *,
    home: Path,
    progress: Progress | None = None,
    precision: Precision = "int8",
    adapter: Path | str | None = None,
) -> DecoderStack:
    """Open the weights alone (a folder need not have a tokenizer); as :func:`load` otherwise."""
    source = _open(Path(path))
    return DecoderStack(source.config, _values(source, home, progress, precision, adapter))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A checkpoint and what its family makes of it; ``files`` stand for its content."""

    family: Family
    config: BackboneConfig
    checkpoint: GGUFFile | SafetensorsFolder
    files: list[Path]
    vision: tuple[VisionConfig, str] | None = None

    @property
    def format(self) -> Format:
        return "gguf" if isinstance(self.checkpoint, GGUFFile) else "hf"


def _open(path: Path) -> _Source:
    found = list(path.glob("*.gguf"))
    if len(found) == 1:
        path = found[0]
    if not path.is_dir():
        file = GGUFFile(path)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        with _named(path):
            family = registry.family_of(file.metadata.get("general.architecture"))
            config = family.config_from_gguf(file.metadata, shapes)
        return _Source(family=family, config=config, checkpoint=file, files=[path])
    description = weights.read_hf_config(path)
    with _named(path / "config.json"):
        family = registry.family_of(description.get("model_type"))
        config = family.config_from_hf(description)
        vision = family.vision(description)
    folder = SafetensorsFolder(path)
    files = [path / "config.json", *folder.files]
    return _Source(
        family=family,
        config=config,
        checkpoint=folder,
        files=files,
        vision=vision,
    )


def _tokenizer(source: _Source) -> tuple[Tokenizer, str]:
    """The tokenizer that lies with the weights, and the model's name."""
    if isinstance(source.checkpoint, GGUFFile):
        metadata = source.checkpoint.metadata
        tokenizer = Tokenizer.from_gguf(metadata)
        name = str(metadata.get("general.name", source.checkpoint.path.stem))
    else:
        folder = source.checkpoint.path
        tokenizer, name = Tokenizer.from_file(folder / "tokenizer.json"), folder.name
    num_embeddings = source.config.vocab_size
    if tokenizer.vocab_size > num_embeddings:
        raise ModelError(
            f"{source.checkpoint.path} has {tokenizer.vocab_size} tokens but only "
            f"{num_embeddings} embeddings"
        )
    return tokenizer, name


def _plan(source: _Source, adapter: Path | str | None) -> tuple[Sequence[Entry], list[Path], str]:
    """What to read of the checkpoint and the adapter; the files; where they come from."""
    family, config, checkpoint = source.family, source.config, source.checkpoint
    plan = family.plan(config, source.format, checkpoint.names)
    weights.check(plan, checkpoint, family.ignored(config))
    origin = str(checkpoint.path.resolve())
    if adapter is None:
        return plan, source.files, origin
    low_rank = Adapter(Path(adapter))
    described = plan if source.format == "hf" else family.plan(config, "hf")
    origin = f"{origin} with {low_rank.path.resolve()}"
    return low_rank.applied(plan, described), [*source.files, *low_rank.files], origin


def _vision(source: _Source, precision: Precision) -> VisionTower | None:
    """The model's eyes; None where it has none, or the checkpoint left them out (as GGUF does)."""
    checkpoint = source.checkpoint
    if source.vision is None or isinstance(checkpoint, GGUFFile):
        return None
    config, prefix = source.vision
    names = [name for name in checkpoint.names if name.startswith(prefix)]
    if not names:
        return None
    tensors = {
        name.removeprefix(prefix): torch.from_numpy(checkpoint.dense(name)).view(
            checkpoint.shape(name)
        )
        for name in names
    }
    with _named(checkpoint.path):
        return VisionTower(config, tensors, precision=precision)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What is wrong with a description names the file that it stands in."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _values(
    source: _Source,
    home: Path,
    progress: Progress | None,
    precision: Precision,
    adapter: Path | str | None,
) -> Mapping[str, Parameter]:
    checkpoint = source.checkpoint
    plan, files, origin = _plan(source, adapter)
    if precision == "fp32":
        return weights.read_dense(plan, checkpoint)
    folder = home / "repacked" / repacked.key_of(files)
    return repacked.open_or_make(folder, plan, checkpoint, progress, source=origin)
