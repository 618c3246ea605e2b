"""Matrix products that are right where a process has part of a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch.library import Library, get_kernel

from heteroring.kernels.matmul import covers, matmul


@cache
def avoid_clusters() -> None:
    """From now on, have PyTorch compute products in this process without thread block clusters, where `covers` allows.

    cuBLAS works out for how many clusters a process has room by its number of multiprocessors. Where MPS leaves it some
    multiprocessors of each neighbourhood, fewer run, and tiles of the result are never written: no error, just what was
    in memory before. Heteroring's own kernel takes the place of cuBLAS's on GPUs that have clusters (compute capability
    9.0 and later), for 16-bit products of two matrices, with a bias or without, and for batches of them. Nothing else
    is touched. The change lasts as long as the process.
    """
    _kept.append(divert("CUDA", covers, matmul))


def divert(dispatch_key: str, covers: Callable[..., bool], matmul: Callable[..., torch.Tensor]) -> Library:
    """PyTorch's products on `dispatch_key` by `matmul(a, b, out=None)` where `covers` says so of the same arguments.

    For as long as the returned Library is there.
    """
    library = Library("aten", "IMPL", dispatch_key)
    originals = {name: get_kernel(f"aten::{name}", dispatch_key) for name in ("mm", "mm.out", "addmm", "bmm")}

    def mm(keys, a, b):
        return matmul(a, b) if covers(a, b) else originals["mm"].call_boxed(keys, a, b)

    def mm_out(keys, a, b, *, out):
        return matmul(a, b, out) if covers(a, b, out) else originals["mm.out"].call_boxed(keys, a, b, out=out)

    def addmm(keys, bias, a, b, *, beta=1, alpha=1):
        if not covers(a, b):
            return originals["addmm"].call_boxed(keys, bias, a, b, beta=beta, alpha=alpha)
        product = matmul(a, b) if alpha == 1 else matmul(a, b) * alpha
        return torch.add(product, bias, alpha=beta) if beta else product

    def bmm(keys, a, b):
        if not (len(a) and all(map(covers, a, b))):
            return originals["bmm"].call_boxed(keys, a, b)
        return torch.stack([matmul(*each) for each in zip(a, b, strict=True)])

    with warnings.catch_warnings():  # PyTorch warns of what is done here on purpose
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, kernel in (("mm", mm), ("mm.out", mm_out), ("addmm", addmm), ("bmm", bmm)):
            library.impl(name, kernel, with_keyset=True)
    return library


_kept: list[Library] = []
