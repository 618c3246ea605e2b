"""Markers, and pools of ranks, for all tests."""

import gc
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from os import PathLike
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from heteroring.launch.launch import check_ranks
from ranks import Ranks

# Measurements of tests are not read by anyone, so they need not wait for those of other workers.
os.environ["HETERORING_LOCK"] = ""

# One thread for each process: workers and ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# The processes that tests start import the same modules over and over, and should compile them once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Without a GPU, kernels are interpreted. Triton decides on that when it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Imported modules and collected tests stay: garbage collections that scanned them took a tenth of the time.
gc.set_threshold(100_000)

# No deadline: the time of an example depends on the load of the machine more than on the code.
# HYPOTHESIS_PROFILE=long tries for an hour what the short profile tries for seconds.
settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# Where ibm-fms is not installed, the folder of its tests would pass for it.
if (spec := find_spec("fms")) and spec.origin is None:
    sys.modules["fms"] = None

# The modules whose jobs tests can measure on pools of ranks.
LAUNCHING = ("bench.base_job", "microbench.decode", "microbench.ranks")
STARTS_PROCESSES = {"ranks", "workflow", "gpu", "multigpu"}
# What other tests may start: programs that end in milliseconds, and the scripts of set-up among stand-ins.
QUICK = {"git", "make", "nvidia-smi", "tex.sh", "venv.sh"}


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that use a pool of ranks. Put the longest files first: the workflow, and those that start ranks.

    So in a parallel run no worker starts them when the others are almost done.
    """
    places = {}
    for item in items:
        if {"ranks", "fresh_ranks"} & set(item.fixturenames):
            item.add_marker("ranks")
        marks = {mark.name for mark in item.iter_markers()}
        place = 0 if "workflow" in marks else 1 if "ranks" in marks else 2
        places[item.path] = min(place, places.get(item.path, place))
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Fail a test that starts ranks or a program that is not QUICK without one of the markers for that."""
    if STARTS_PROCESSES & {mark.name for mark in item.iter_markers()}:
        return (yield)
    popen = subprocess.Popen.__init__

    def checked(process, args, *more, **options):
        program = args if isinstance(args, str | PathLike) else args[0]
        if Path(program).name not in QUICK:
            refuse()
        popen(process, args, *more, **options)

    def refuse(*_):
        pytest.fail("a test that starts processes must be marked ranks or workflow")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", checked)
        patch.setattr(BaseProcess, "start", refuse)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """Restore SIGINT: a shell has background processes ignore it, which those that tests interrupt would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ranks():
    """Pools of gloo ranks by world size, started when first asked for."""
    pools: dict[int, Ranks] = {}

    def pool(world_size: int) -> Ranks:
        if world_size not in pools:
            pools[world_size] = Ranks(world_size)
        return pools[world_size]

    yield pool
    for started in pools.values():
        started.close()


@pytest.fixture(scope="module")
def gpus():
    """Two ranks with a GPU each, or with one GPU for both."""
    ranks = Ranks(2, device="cuda")
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def measuring_on_pools(ranks):
    """A context in which jobs are measured on the pools of `ranks`, for tests that need no newly launched ranks."""

    def launch(task, *args, device_kind, throttle, percentages, **watching):
        check_ranks(device_kind, throttle, percentages)
        return ranks(len(percentages)).launch(task, *args, throttle=throttle, percentages=percentages, **watching)

    @contextmanager
    def measuring():
        with pytest.MonkeyPatch.context() as patch:
            for user in LAUNCHING:
                patch.setattr(f"heteroring.{user}.launch", launch)
            yield

    return measuring


@pytest.fixture
def jobs_on_pools(measuring_on_pools):
    with measuring_on_pools():
        yield


@pytest.fixture
def fresh_ranks():
    """Makes pools that a test may break."""
    started: list[Ranks] = []

    def pool(world_size: int, timeout_s: float = 60.0) -> Ranks:
        started.append(Ranks(world_size, timeout_s))
        return started[-1]

    yield pool
    for each in started:
        each.close()
