"""Helpers of GPU tests: markers, operands and poisoned memory."""

import pytest
import torch

# Counted without starting CUDA (unlike is_available), which in a rank would come before the throttle's variables.
GPUS = torch.cuda.device_count()

one_gpu = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs a CUDA GPU")]
two_gpus = [pytest.mark.multigpu, pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")]


def of_gpus(*counts):
    """Parameters: numbers of GPUs; those that this machine does not have are skipped."""
    return [
        pytest.param(
            count, marks=[pytest.mark.multigpu, pytest.mark.skipif(count > GPUS, reason=f"needs {count} GPUs")]
        )
        for count in counts
    ]


def random_qkv(seq_len, heads, kv_heads, head_dim, dtype, seed, batch=1, device="cuda"):
    """q, k and v of a whole sequence, the same for a seed on every GPU of a kind."""
    g = torch.Generator(device).manual_seed(seed)
    return tuple(
        torch.randn(batch, h, seq_len, head_dim, generator=g, device=device).to(dtype)
        for h in (heads, kv_heads, kv_heads)
    )


def poison(device="cuda"):
    """Leave NaN in the memory that the next allocations get."""
    free = [torch.full((1 << size,), torch.nan, device=device) for size in range(8, 25)]
    del free
