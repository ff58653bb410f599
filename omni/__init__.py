"""Omni: a real-time multimodal assistant that anyone can run on their own machine.

Imports no torch: :mod:`omni.threads` must set the OpenMP environment before torch is loaded.
"""

__version__ = "0.1.0"
