"""The truth about the quantised linear, in plain torch: slow, exact in its integers.

Letters: M rows, K inputs, N outputs, G groups of 32.
"""

from __future__ import annotations

import torch

from omni_kernels.linear.layout import GROUP, PackedWeight, parts

TINY = 1e-30
"""A group whose largest magnitude is below this counts as zero (127 / it must stay finite)."""


def quantize_activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise ``x`` [M, K] fp32 per row in groups of 32.

    q = round-half-even(x * (127 / max|x|)), scale = max|x| / 127. A group holding a value that is
    not finite gets a NaN scale, so its row's results are NaN.

    Returns:
        ``q`` int8 [M, G, 32] and ``scale`` fp32 [M, G].
    """
    m, k = x.shape
    groups = -(-k // GROUP)
    padded = torch.nn.functional.pad(x, (0, groups * GROUP - k)).view(m, groups, GROUP)
    amax = padded.abs().amax(dim=2)
    usable = amax.isfinite() & (amax >= TINY)
    # 127.0 / amax would be amax.reciprocal() * 127, which rounds twice.
    inverse = torch.where(usable, torch.full_like(amax, 127.0) / amax, 0.0)
    rounded = (padded * inverse.unsqueeze(2)).round()
    q = torch.where(usable.unsqueeze(2), rounded, 0.0).to(torch.int8)
    scale = torch.where(usable, amax / 127.0, 0.0)
    return q, torch.where(amax.isfinite(), scale, torch.nan)


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``x`` [M, K] @ weight^T + ``bias`` [N] with activations quantised as above.

    Each group's integer dot product is exact in fp32 (at most 32 * 127 * 128 < 2^24), so the order
    inside a group does not matter; groups are added in ascending order in fp32, each one's product
    before its offset times the sum of its activations.

    Returns:
        fp32 [M, N].
    """
    q, scale = quantize_activations(x)  # [M, G, 32], [M, G]
    weights, weight_scales, offsets = parts(weight)  # [N, G * 32], [N, G], [N, G] or None
    out = x.new_zeros(x.shape[0], weight.out_features)
    for g in range(scale.shape[1]):
        columns = weights[:, g * GROUP : (g + 1) * GROUP].float()
        dot = q[:, g].float() @ columns.T  # [M, N]
        out += dot * (weight_scales[:, g].float() * scale[:, g : g + 1])
        if offsets is not None:
            sums = q[:, g].float().sum(dim=1, keepdim=True)  # [M, 1]
            out += offsets[:, g].float() * (scale[:, g : g + 1] * sums)
    return out if bias is None else out + bias
