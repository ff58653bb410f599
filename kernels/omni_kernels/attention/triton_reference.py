"""The truth about what only the card's attention kernels do, in plain torch (no Triton here).

Letters: N rows, Hq query heads, Hkv key heads, D width, R rotated dimensions, P pages, T tokens.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from omni_kernels.rowwise.reference import rotate


def norm_rotate_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """Normalise and rotate ``q`` [N, Hq, D] and ``k`` [N, Hkv, D]; write k and ``v`` to ``kv``.

    Args:
        q: queries; k, v: keys and values of the new tokens.
        k: as above.
        v: as above.
        kv: [2, P, T, Hkv, D]; mutated.
        norms: factors [D] of q and k after division by their root mean square; None: no norm.
        eps: added to the mean square.
        cosine: [N, R / 2] of each token's angles; pairs are (i, i + R / 2).
        sine: likewise.
        places: [N] page id * T + offset; a negative one is not stored.

    Returns:
        The rotated queries [N, Hq, D].
    """
    rotated = 2 * cosine.shape[1]
    if norms is not None:
        q, k = (
            functional.rms_norm(t, t.shape[2:], w, eps) for t, w in ((q, norms[0]), (k, norms[1]))
        )
    q, k = (
        torch.cat([rotate(t[:, :, :rotated], cosine, sine), t[:, :, rotated:]], dim=2)
        for t in (q, k)
    )
    tokens = kv.flatten(1, 2)  # [2, P * T, Hkv, D]
    stored = places >= 0
    tokens[0, places[stored]] = k[stored]
    tokens[1, places[stored]] = v[stored]
    return q
