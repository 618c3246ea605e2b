"""The merge of two partial attention results over disjoint keys."""

import torch


def merge_(
    out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge a partial result over further keys into another one, in place.

    The weight of the new part is sigmoid(part_lse - lse), and the new LSE is max(a, b) - log sigmoid(|a - b|): both
    stay finite where exp would overflow. A part that sees no key (LSE -inf, out 0) changes nothing, also where nothing
    has been merged yet. The result is computed in fp32 and rounded once, to the dtype of `out`.

    Args:
        out: Output [B, H, m, D] of any dtype, which is changed.
        lse: Its LSE [B, H, m], fp32 or fp64, in natural log, which is changed.
        part_out: Output over other keys [B, H, m, D] of any dtype.
        part_lse: Its LSE [B, H, m].

    Returns:
        (out, lse), the same tensors.
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
