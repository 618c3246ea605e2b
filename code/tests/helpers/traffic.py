"""What a rank receives from its peers in calls over gloo."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def received_bytes() -> Iterator[list[int]]:
    """The bytes of every message that this rank receives while the context lasts."""
    received, send_receive = [], dist.batch_isend_irecv

    def count(operations):
        received.extend(op.tensor.nbytes for op in operations if op.op is dist.irecv)
        return send_receive(operations)

    dist.batch_isend_irecv = count
    try:
        yield received
    finally:
        dist.batch_isend_irecv = send_receive
