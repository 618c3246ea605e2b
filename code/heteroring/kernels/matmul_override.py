"""PyTorch's matrix products replaced by heteroring's own, in processes that have only some of a GPU's SMs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import takewhile

import torch
from torch.library import Library, get_kernel

from heteroring.kernels.matmul import ARCHITECTURE, matmul


@cache
def avoid_clusters(device: torch.device) -> Library | None:
    """Have PyTorch compute products in this process without thread block clusters from now on, where `matmul` can.

    The cuBLAS of CUDA 13.0 seems to derive the number of clusters that it has room for from the number of SMs. Where a
    throttle leaves scattered SMs, it leaves tiles of the result unwritten at many sizes and settings, without an error.
    On a Hopper `device`, heteroring's own kernel takes the place of cuBLAS's in mm, addmm and bmm (so in matmul, linear
    and einsum), for 16-bit operands in whole rows or columns. Other products stay with cuBLAS, among them 32-bit
    products, a matrix times a vector, baddbmm, addmm and bmm into a given tensor, and a transposed left operand. The
    change lasts as long as the process. Other devices are left alone.

    Raises RuntimeError on a Hopper device without Triton.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != ARCHITECTURE:
        return None
    if find_spec("triton") is None:
        raise RuntimeError(
            "this throttle leaves part of a Hopper GPU, where cuBLAS gets products wrong, and Triton, which would "
            "compute them instead, is not installed: install it, or take --throttle green"
        )
    return divert("CUDA", matmul)


def divert(dispatch_key: str, matmul: Callable[..., torch.Tensor | None]) -> Library:
    """Compute PyTorch's products on `dispatch_key` by `matmul(a, b, out=None)`, except where it returns None.

    A product is rounded before it is multiplied by a factor other than 1, and before a bias is added. This lasts as
    long as the returned Library lives.
    """
    library = Library("aten", "IMPL", dispatch_key)
    originals = {name: get_kernel(f"aten::{name}", dispatch_key) for name in ("mm", "mm.out", "addmm", "bmm")}

    def mm(keys, a, b):
        product = matmul(a, b)
        return originals["mm"].call_boxed(keys, a, b) if product is None else product

    def mm_out(keys, a, b, *, out):
        product = matmul(a, b, out)
        return originals["mm.out"].call_boxed(keys, a, b, out=out) if product is None else product

    def addmm(keys, bias, a, b, *, beta=1, alpha=1):
        product = matmul(a, b) if bias.dtype == a.dtype else None
        if product is None:
            return originals["addmm"].call_boxed(keys, bias, a, b, beta=beta, alpha=alpha)
        bias = bias.expand(product.shape)
        product = product if alpha == 1 else product * alpha
        return torch.add(product, bias, alpha=beta) if beta else product

    def bmm(keys, a, b):
        each = map(matmul, a, b) if a.dim() == b.dim() == 3 else ()
        products = list(takewhile(lambda product: product is not None, each))
        if products and len(products) == len(a) == len(b):
            return torch.stack(products)
        return originals["bmm"].call_boxed(keys, a, b)

    with warnings.catch_warnings():  # PyTorch warns that kernels are overridden
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, kernel in (("mm", mm), ("mm.out", mm_out), ("addmm", addmm), ("bmm", bmm)):
            library.impl(name, kernel, with_keyset=True)
    return library
