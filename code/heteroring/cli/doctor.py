"""`heteroring doctor`: what this machine has, what a run would use, and whether that computes right results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

from heteroring.cli.options import Json, examples, print_json, printing, reporting, say
from heteroring.interrupts import raise_on_ctrl_c

EXAMPLES = examples("heteroring doctor", "heteroring doctor --json")

RIGHT, MISSING, WRONG = "ok", "missing", "wrong"
_COLOURS = {RIGHT: "green", MISSING: "yellow", WRONG: "bold red"}
# Optional packages, and what is missing without them.
_PACKAGES = {
    "triton": "no kernels of this project on GPUs: PyTorch's attention alone",
    "ibm-fms": "no whole models, no layer, no demo: pip install ibm-fms",
    "snakemake": "no workflow: pip install -e '.[workflow]'",
}
# The products that are checked under MPS, by rows, K and N, as in the layers of models; and the limit in percent.
_PRODUCTS = ((409, 4096, 6144), (1024, 4096, 4096), (2048, 4096, 12288))
_PERCENTAGE = 80
_SECONDS = 120.0


@dataclass(frozen=True)
class Finding:
    """The name of a check, its finding, and the consequence; `state`: RIGHT, MISSING (but optional) or WRONG."""

    name: str
    found: str
    follows: str = ""
    state: str = RIGHT


@reporting
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, what a run uses of it and why; exit 1 if something computes wrong results."""
    say("looking at this machine")
    import torch  # noqa: F401  imported here, where Ctrl-C has nothing to clean up

    raise_on_ctrl_c()
    found = list(findings())
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        _show(found)
    if any(each.state == WRONG for each in found):
        raise typer.Exit(1)


def _show(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "here", "so"):
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(f"[{_COLOURS[each.state]}]{each.name}[/]", each.found, each.follows)
    with printing():
        Console().print(table, highlight=False)


def findings() -> Iterator[Finding]:
    """All findings; last those on what a run uses."""
    yield from _software()
    yield from _cpu()
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        yield Finding("GPUs", "none that CUDA shows", "no device kind gpu, no products under MPS to look at", MISSING)
    else:
        products = list(_products_under_mps())  # before this process starts CUDA
        yield from _gpus(gpus)
        yield _mps()
        yield from products
    yield from _used(gpus)


def _software() -> Iterator[Finding]:
    import torch

    yield Finding("Python", sys.version.split()[0])
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone"
    yield Finding("PyTorch", f"{torch.__version__}, {cuda}")
    for name, without in _PACKAGES.items():
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", without, MISSING)
    if latexmk := shutil.which("latexmk"):
        yield Finding("TeX", latexmk)
    else:
        yield Finding("TeX", "no latexmk", "no PDF: snakemake all_but_pdf builds everything else", MISSING)


def _cpu() -> Iterator[Finding]:
    import torch.distributed as dist

    from heteroring.launch.device import check_loopback
    from heteroring.launch.machine_lock import holder
    from heteroring.procfs import cpu_model

    cores = len(os.sched_getaffinity(0))
    shared = "" if cores > 1 else "two ranks share it: their times say nothing"
    yield Finding("CPU", f"{cores} cores, {cpu_model()}", shared, RIGHT if cores > 1 else MISSING)
    yield _cpu_attention()
    if not dist.is_gloo_available():
        yield Finding("gloo", "not in this PyTorch", "no ranks on CPUs", MISSING)
    try:
        check_loopback()
        yield Finding("loopback", "works")
    except ValueError as error:
        yield Finding("loopback", "does not work", str(error), WRONG)
    if other := holder():
        yield Finding("lock", f"held by {other}", "measurements wait for it", MISSING)


def _cpu_attention() -> Finding:
    """Whether output and LSE of the CPU's backend agree with attention written out in fp64."""
    import torch

    from heteroring.kernels import sdpa
    from heteroring.kernels.reference import attention

    by_kernel = sdpa.HAS_CPU_KERNEL
    what = "PyTorch's kernel, with the LSE" if by_kernel else "this PyTorch gives no LSE: attention written out, slowly"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 193, 64, generator=generator) for _ in range(3))
    ours = sdpa.cpu(q, k, v, scale=0.125, causal_offset=0)
    exact = attention(q.double(), k.double(), v.double(), scale=0.125, causal_offset=0)
    error = max((x - y).abs().max().item() for x, y in zip(ours, exact, strict=True))
    right = error < 1e-5
    return Finding("CPU attention", what, f"largest error {error:.1e} in fp32", RIGHT if right else WRONG)


def _gpus(gpus: int) -> Iterator[Finding]:
    import torch
    import torch.distributed as dist

    for index in range(gpus):
        seen = torch.cuda.get_device_properties(index)
        capability = f"{seen.major}.{seen.minor}"
        memory = f"{seen.total_memory / 2**30:.0f} GiB"
        yield Finding(
            f"GPU {index}", f"{seen.name}, {seen.multi_processor_count} SMs, {memory}, capability {capability}"
        )
    pairs = [(i, j) for i in range(gpus) for j in range(gpus) if i != j]
    apart = [f"{i} to {j}" for i, j in pairs if not torch.cuda.can_device_access_peer(i, j)]
    if pairs and not apart:
        yield Finding("P2P", "every GPU reaches every other", "transport copy-engine")
    elif pairs:
        yield Finding("P2P", f"not from {', '.join(apart)}", "transport p2p, through NCCL", MISSING)
    if dist.is_nccl_available():
        yield Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Finding("NCCL", "not in this PyTorch", "no ranks on GPUs", MISSING)
    yield _green()


def _green() -> Finding:
    from heteroring.throttle.green import Green

    throttle = Green(50)
    try:
        throttle.start()
    except (ImportError, ValueError) as error:
        return Finding("green contexts", "none", str(error), MISSING)
    counts = throttle.report()
    return Finding("green contexts", f"{counts['multiprocessors']} SMs where 50 % were asked for")


def _mps() -> Finding:
    from heteroring.throttle.mps_daemon import CONTROL, PIPES

    if named := os.environ.get(PIPES):
        return Finding("MPS", f"the daemon at {named}, which {PIPES} names", "it serves the ranks, and is left running")
    if path := shutil.which(CONTROL):
        return Finding("MPS", path, "a daemon is started for the ranks, and ends with them")
    return Finding("MPS", f"no {CONTROL} on PATH", "GPUs cannot be throttled by it: --throttle green", MISSING)


def _products_under_mps() -> Iterator[Finding]:
    """Whether 16-bit products are right in a process limited by MPS: by cuBLAS, and as ranks compute them."""
    from heteroring.throttle.mps import PERCENTAGE
    from heteroring.throttle.mps_daemon import CONTROL, MpsUnavailable, mps_daemon

    name = f"products at {_PERCENTAGE} %"
    if shutil.which(CONTROL) is None:
        return
    code = "from heteroring.cli.doctor import print_products; print_products()"
    try:
        with mps_daemon() as variables:
            limited = os.environ | dict(variables) | {PERCENTAGE: str(_PERCENTAGE)}
            done = subprocess.run(
                [sys.executable, "-c", code], env=limited, capture_output=True, text=True, timeout=_SECONDS
            )
    except (MpsUnavailable, subprocess.TimeoutExpired) as error:
        yield Finding(name, "not looked at", str(error), MISSING)
        return
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        yield Finding(name, "could not be computed", said[-1], WRONG)
        return
    wrong = json.loads(done.stdout)
    many = len(_PRODUCTS)
    found = f"cuBLAS gets {wrong['torch']} of {many} wrong, ranks get {wrong['ranks']} of {many} wrong"
    follows = "ranks compute them by a kernel of this project" if wrong["ours"] else "ranks leave them to cuBLAS"
    yield Finding(name, found, follows, WRONG if wrong["ranks"] else RIGHT)


def print_products() -> None:
    """Print, as JSON, how many of _PRODUCTS PyTorch gets wrong here, before and after it is patched as on ranks."""
    import torch

    from heteroring.kernels.matmul_override import avoid_clusters
    from heteroring.microbench.matmul import share_wrong, torch_mm

    operands = [
        (torch.randn(m, k, device="cuda", dtype=torch.bfloat16), torch.randn(n, k, device="cuda", dtype=torch.bfloat16))
        for m, k, n in _PRODUCTS
    ]

    def wrong() -> int:
        return sum(share_wrong(torch_mm, a, b.t()) > 0 for a, b in operands)

    before = wrong()
    ours = avoid_clusters(torch.device("cuda", 0)) is not None
    print(json.dumps({"torch": before, "ranks": wrong(), "ours": ours}))


def _used(gpus: int) -> Iterator[Finding]:
    """What a run uses by default."""
    import torch

    from heteroring.kernels.backend import choose
    from heteroring.throttle import DEFAULTS

    kind = "gpu" if gpus > 1 else "cpu"
    why = f"{gpus} GPUs: two or more are needed for a ring on gpu" if gpus < 2 else f"{gpus} GPUs"
    yield Finding("device kind", kind, why)
    yield Finding("throttle", DEFAULTS[kind], "makes ranks slow; --throttle names another")
    device = torch.device("cuda" if gpus > 1 else "cpu", 0)
    with suppress(ValueError):
        yield Finding("backend", choose("auto", device), "computes attention; --block names another")
