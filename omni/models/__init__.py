"""Model families on one shared stack.

:func:`load` opens a model; :mod:`omni.models.batch` is the contract with the engine.
"""

from omni.models.loading import LoadedModel, load, load_backbone

__all__ = ["LoadedModel", "load", "load_backbone"]
