"""The assistant: wires one family's encoders, engine and speech decoder behind one port.

Called by :mod:`omni.worker` on the engine thread. It knows nothing of the Realtime protocol, of
sockets or of clocks.
"""

from omni.assistant.assistant import Assistant
from omni.assistant.priorities import PartPriority

__all__ = ["Assistant", "PartPriority"]
