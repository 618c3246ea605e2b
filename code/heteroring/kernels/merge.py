"""The merge of two partial attention results over disjoint keys."""

import torch


def merge_(
    out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold (part_out, part_lse) into (out, lse), in place.

    out [B, H, m, D] and lse [B, H, m] are fp32 (or fp64), lse in natural log; part_out may be of any dtype.
    The weight of the new part is sigmoid(part_lse - lse), and the new LSE is max(a, b) - log sigmoid(|a - b|):
    both stay finite where exp would overflow. A fully masked part (LSE -inf, out 0) changes nothing, also where
    nothing has been folded in yet.
    """
    # -inf - -inf would be NaN; a NaN that is really in the data must stay one.
    masked = part_lse == -torch.inf
    delta = torch.where(masked, -torch.inf, part_lse - lse)
    out.lerp_(part_out.to(out.dtype), torch.sigmoid(delta).unsqueeze(-1))
    lse.copy_(torch.maximum(lse, part_lse) - torch.nn.functional.logsigmoid(delta.abs()))
    return out, lse
