import os
import signal

import pytest
from ranks import Ranks

# What tests launch measures nothing that anyone reads, and need not wait for what other workers launch.
os.environ["HETERORING_LOCK"] = ""


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """A shell has what it starts in the background ignore SIGINT, and so would the processes that tests interrupt."""
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
