"""The merge of two partial attention results over disjoint keys."""

import torch


def merge_(
    out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge (part_out, part_lse) into (out, lse), in place.

    out [B, H, m, D] and part_out may be of any dtype, lse [B, H, m] is fp32 (or fp64), in natural log. The weight of
    the new part is sigmoid(part_lse - lse), and the new LSE is max(a, b) - log sigmoid(|a - b|): both stay finite
    where exp would overflow. A fully masked part (LSE -inf, out 0) changes nothing, also where nothing has been
    merged yet. The result is computed in fp32 and rounded once, to the dtype of out.
    """
    if out.is_cuda and lse.dtype == torch.float32:
        from heteroring.kernels import merge_kernel

        merge_kernel.merge_(out, lse, part_out, part_lse)
        return out, lse
    # -inf - -inf would be NaN; a NaN in the data must stay one.
    masked = part_lse == -torch.inf
    delta = torch.where(masked, -torch.inf, part_lse - lse)
    weight = torch.sigmoid(delta).unsqueeze(-1)
    if out.dtype == lse.dtype:
        out.lerp_(part_out.to(out.dtype), weight)
    else:
        out.copy_(torch.lerp(out.to(lse.dtype), part_out.to(lse.dtype), weight))
    lse.copy_(torch.maximum(lse, part_lse) - torch.nn.functional.logsigmoid(delta.abs()))
    return out, lse
