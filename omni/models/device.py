"""Where the backbone runs: on the CPU or on a card; decided once, before weights are loaded.

Called by :mod:`omni.assistant.embedded`, the command line and :mod:`omni.models.loading`. A card is
one that PyTorch calls CUDA (ROCm included). What runs there has been tested in Triton's interpreter
only (docs/kernels.md).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from omni.errors import ConfigError
from omni.models.backbone import BackboneConfig, DecoderStack
from omni.models.parameters import Parameter

if TYPE_CHECKING:
    from omni.models.card import CardStack

Device = Literal["cpu", "cuda"]
Stack: TypeAlias = "DecoderStack | CardStack"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What could run a backbone here, the CPU aside."""

    card: str | None  # its name
    has_triton: bool  # looked for only where there is a card


def look() -> Hardware:
    """Ask PyTorch for a card, and where there is one, import Triton."""
    if not torch.cuda.is_available():
        return Hardware(card=None, has_triton=False)
    try:
        importlib.import_module("triton")
    except ImportError:
        return Hardware(card=torch.cuda.get_device_name(), has_triton=False)
    return Hardware(card=torch.cuda.get_device_name(), has_triton=True)


def resolve(wanted: str, hardware: Hardware) -> Device:
    """Choose where the backbone runs; ``wanted`` is ``engine.device``.

    Raises:
        ConfigError: it is "cuda", and there is no card or no Triton.
    """
    if wanted == "cpu":
        return "cpu"
    if hardware.card is not None and hardware.has_triton:
        return "cuda"
    if wanted == "cuda":
        what = "no card that it can use" if hardware.card is None else "no Triton beside it"
        raise ConfigError(
            f'engine.device is "cuda", but PyTorch finds {what}; set it to "auto" or "cpu"'
        )
    return "cpu"


def choose(wanted: str) -> Device:
    """Look, :func:`resolve` and log what was chosen."""
    hardware = look()
    device = resolve(wanted, hardware)
    if device == "cuda":
        _log.warning(
            "the backbone runs on %s; its kernels were only ever tested in an interpreter "
            '(engine.device="cpu" is the proven way)',
            hardware.card,
        )
    else:
        _log.info("the backbone runs on the CPU (engine.device is %s)", wanted)
    return device


def build_stack(config: BackboneConfig, values: Mapping[str, Parameter], device: Device) -> Stack:
    """Make the stack of ``config`` from ``values`` (host memory) where ``device`` says.

    Raises:
        ModelError: the weights lack a parameter, or the kernels cannot run the model's shapes.
    """
    if device == "cpu":
        return DecoderStack(config, values)
    from omni.models.card import CardStack  # needs Triton, which is optional

    return CardStack(config, values, device=torch.device(device))
