"""Timed prefill and decode of a language model on one rank, and the check of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from heteroring.allocators.even import even
from heteroring.bench.model.job import UNTIMED_TOKENS, ModelCell, ModelJob
from heteroring.bench.model.layer_trace import Event, LayerTrace
from heteroring.bench.read_bandwidth import read_bandwidth
from heteroring.bench.verify import WrongResult
from heteroring.bench.wrap_module import wrap_computing
from heteroring.kernels.backend import Backend, choose, resolve
from heteroring.launch.heartbeat import advance, beat, beating
from heteroring.launch.launch import Rank
from heteroring.ring.partition import Partition
from heteroring.ring.transport.transport import choose_transport

# Error of the logits relative to their own size: rounding errors add up from layer to layer, whereas the error of a
# layer that lost a shard is as large as its output.
LOGITS_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
WARM_TOKENS = 4
SHORT_PROMPT = 64


class Usage(NamedTuple):
    """Time and memory of one repetition of a cell on one rank, in ms and bytes. decode_ms is per token, 0 for none.

    captured: whether the steps of decode were replayed.
    """

    prefill_ms: float
    decode_ms: float
    prefill_bytes: int
    decode_bytes: int
    captured: bool = False


class Repetition(NamedTuple):
    """One repetition on one rank: time and memory, logits [B, V], new ids [B, n], and events of the traced layer."""

    usage: Usage
    logits: torch.Tensor
    ids: torch.Tensor
    events: list[Event]


class Check(NamedTuple):
    """How a result compares with that of rank 0 alone.

    error: of the logits, relative to their size. same_token: whether the likeliest one is the same; same_ids: how many
    generated ids are the same, from the first on, in the sequence with the fewest.
    """

    error: float
    same_token: bool
    same_ids: int


def prompt(job: ModelJob) -> torch.Tensor:
    """[B, longest of seq_lens] random ids, the same for a seed; shorter prompts are the beginning of it."""
    generator = torch.Generator().manual_seed(job.seed)
    return torch.randint(job.model.sizes.vocabulary, (job.batch, max(job.seq_lens)), generator=generator)


class ModelBench:
    """A model on one rank, ready to be timed."""

    def __init__(self, rank: Rank, job: ModelJob) -> None:
        self.rank, self.job = rank, job
        shape, device = job.model.shape(job.batch), rank.torch_device
        self.backend_name = choose(job.backend, device, shape.torch_dtype, shape.head_dim)
        self.transport = choose_transport(job.transport, dist.group.WORLD, device)
        self.model = job.model.build(device, job.seed)
        beat()
        wrap_computing(self.model, self._wrap)
        plain = resolve(self.backend_name, device, shape.torch_dtype, shape.head_dim)
        self._compute = plain.wrapped(rank.throttle.wrap)
        # By name, a backend also selects its decode kernel; a wrapped, throttled one cannot.
        self._backend = job.backend if self._compute is plain else self._compute
        # Every rank must take part in creating every group.
        groups = [dist.new_group([each]) for each in range(rank.world_size)]
        self._alone = groups[rank.rank]
        self._prompt = prompt(job)
        if job.compiled:
            self.model.compile()
        self._bandwidth = read_bandwidth(device) if device.type == "cuda" and job.new_tokens else 0.0

    def decode_limit_ms(self, tokens: int) -> float:
        """Least time in which this rank can read the weights and the KV of `tokens` of each sequence, once per token.

        Of the embedding table only a row is read. 0 where the memory's bandwidth is not known, on a CPU.
        """
        if not self._bandwidth:
            return 0.0
        weights = {weight.data_ptr(): weight.nbytes for weight in self.model.parameters()}
        tables = {module.weight.data_ptr() for module in self.model.modules() if isinstance(module, nn.Embedding)}
        multiplied = {module.weight.data_ptr() for module in self.model.modules() if isinstance(module, nn.Linear)}
        read = sum(size for place, size in weights.items() if place not in tables - multiplied)
        sizes, itemsize = self.job.model.sizes, self.job.model.torch_dtype.itemsize
        kv = 2 * sizes.layers * self.job.batch * sizes.kv_heads * sizes.head_dim * itemsize * tokens
        return (read + kv) / self._bandwidth

    def _wrap(self, function: Callable) -> Callable:
        """`function`, throttled; on a CPU it also writes a heartbeat before each call."""
        slowed = self.rank.throttle.wrap(function)
        return beating(slowed) if self.rank.torch_device.type == "cpu" else slowed

    def warm_up(self, cells: tuple[ModelCell, ...]) -> None:
        """Run the first layer of every cell, and a short prompt and some decode through all layers."""
        for cell in cells:
            with first_layer(self.model):
                if cell.system == "fms":
                    self._generate(cell, 1)
                else:
                    self._prefill(cell, self._backend)
                if cell.traced:  # a traced layer has no fused first step, so its kernels may be others
                    with self._tracing() as tracer:
                        self._prefill(cell, tracer)
            self.rank.device.synchronize()
            advance()
        # A short prompt through the whole model, so that no timed call includes first-call work of the host.
        short = max(self.rank.world_size, min(SHORT_PROMPT, *self.job.seq_lens))
        for cell in cells:
            if cell.partition.seq_len == max(self.job.seq_lens):
                if cell.system == "fms":
                    self._generate(_shortened(cell, short), WARM_TOKENS)
                else:
                    prefill = self._prefill(_shortened(cell, short), self._backend)
                    if cell.decodes:
                        self._advance(self._continuation(prefill), WARM_TOKENS)
                self.rank.device.synchronize()
                beat()

    def measure(self, cell: ModelCell, works: bool, trace: bool) -> Repetition | None:
        """Time one prefill of a cell, and the decode behind it, if there is one.

        Args:
            cell: What is measured.
            works: Whether this rank takes part.
            trace: Whether a layer is traced.

        Returns:
            Times and results; None on a rank that does not take part.
        """
        device = self.rank.device
        if cell.system == "fms":
            self._start()
            return self._generate(cell, self.job.new_tokens if cell.decodes else 1) if works else None
        prefill = None
        with self._tracing() if trace else nullcontext() as tracer:
            start = self._start()
            if works:
                prefill = self._prefill(cell, tracer or self._backend)
            stop = device.mark()
            device.synchronize()
        prefill_ms, prefill_bytes = device.elapsed_ms(start, stop), self._peak_bytes(cell)
        events = tracer.events(start, cell.partition, self.rank.rank) if tracer else []
        decode_ms, decode_bytes, captured, ids = 0.0, 0, False, torch.empty(0, dtype=torch.long)
        if cell.decodes:
            made = self._continuation(prefill) if prefill else None
            start = self._start()
            if made:
                self._advance(made, self.job.new_tokens)
            stop = device.mark()
            device.synchronize()
            steps = self.job.new_tokens - UNTIMED_TOKENS
            decode_ms, decode_bytes = device.elapsed_ms(start, stop) / steps, self._peak_bytes(cell)
            if made:
                ids, captured = made.ids, made.captured
        if not prefill:
            return None
        usage = Usage(prefill_ms, decode_ms, prefill_bytes, decode_bytes, captured)
        return Repetition(usage, prefill.logits.float(), ids.cpu(), events)

    @contextmanager
    def _tracing(self) -> Iterator[LayerTrace]:
        """Context in which the middle layer is traced by the backend that it yields."""
        tracer = LayerTrace(self.rank.device, self._compute, meets=self.rank.torch_device.type == "cpu")
        with tracer.of(_middle_layer(self.model)):
            yield tracer

    def _start(self) -> Any:
        """The mark of the ranks' common start."""
        self.rank.device.synchronize()
        if self.rank.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        beat()
        self.rank.device.align()
        return self.rank.device.mark()

    def gather(self, repetition: Repetition | None) -> list[float]:
        """Milliseconds that each rank's prefill took: 0 where a rank did not work."""
        mine = torch.tensor([repetition.usage.prefill_ms if repetition else 0.0], device=self.rank.torch_device)
        times = [torch.empty_like(mine) for _ in range(self.rank.world_size)]
        dist.all_gather(times, mine)
        return [time.item() for time in times]

    def verify(self, cells: tuple[ModelCell, ...], repetitions: dict[int, Repetition]) -> dict[int, Check]:
        """Compare each cell's result on this rank with that of rank 0 alone.

        Args:
            cells: The cells.
            repetitions: One repetition of each, by index of the cell.

        Returns:
            How each compares, by index.

        Raises:
            WrongResult: Naming the cell, if logits are off by more than LOGITS_TOLERANCE.
        """
        exact: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, cell in enumerate(cells):
            if cell.system == "alone":
                own, device = repetitions[index], self.rank.torch_device
                logits, ids = own.logits.clone(), own.ids.to(device, copy=True)  # broadcast overwrites them
                for tensor in (logits, ids):
                    if tensor.numel():
                        dist.broadcast(tensor, src=0)
                exact[cell.partition.seq_len] = logits, ids.cpu()
        checks = {}
        for index, cell in enumerate(cells):
            logits, ids = exact[cell.partition.seq_len]
            checks[index] = compare(repetitions[index], logits, ids)
            tolerance = LOGITS_TOLERANCE[self.job.model.torch_dtype]
            if not checks[index].error <= tolerance:
                raise WrongResult(
                    f"{cell.label}, rank {self.rank.rank}: the logits are off by {checks[index].error:.2g} of their "
                    f"size, more than {tolerance:g}"
                )
        return checks

    def _prefill(self, cell: ModelCell, backend: str | Backend) -> Any:
        from heteroring.fms import ring_prefill

        if self.job.decode_only:
            return self._made_up(cell)
        return ring_prefill(
            self.model,
            self._prompt[:, : cell.partition.seq_len],
            cell.partition,
            group=self._alone if cell.system == "alone" else None,
            capacity=self.job.new_tokens if cell.decodes else 0,
            block=backend,
            transport=self.job.transport,
        )

    def _made_up(self, cell: ModelCell) -> Any:
        """The result of a prefill of `cell`, but with synthetic KV, and one token decoded behind it.

        That token's logits depend on the KV of all ranks, and are compared with those of rank 0 alone.
        """
        from heteroring.fms import ring_decode_step
        from heteroring.fms.cache import empty_cache
        from heteroring.fms.prefill import Prefill

        group = self._alone if cell.system == "alone" else dist.group.WORLD
        cache = empty_cache(self.model, cell.partition, self.job.batch, self.job.new_tokens, None, group, self._backend)
        positions = torch.from_numpy(cell.partition.positions(cache.rank)).to(self.rank.torch_device)
        for index, kv in enumerate(x for layer in cache.layers for x in layer):
            kv[:, :, : len(positions)] = made_up(positions, kv.shape[3], index)
        cache.held = cell.partition.block_lens
        cache.schedule_turns()
        return Prefill(ring_decode_step(self.model, self._prompt[:, 0], cache), cache)

    def _generate(self, cell: ModelCell, new_tokens: int) -> Repetition:
        """FMS's own generate on this rank, by its own clock, for which it makes the host wait after every token."""
        from fms.utils.generation import generate

        ids = self._prompt[:, : cell.partition.seq_len].to(self.rank.torch_device)
        first: list[torch.Tensor] = []

        def keep(_: int, logits: torch.Tensor, token: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, dict]:
            if not first:
                first.append(logits.float())
            beat()
            return token, kwargs

        made, seconds = generate(
            self.model,
            ids,
            max_seq_len=self.job.model.sizes.max_seq_len,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            contiguous_cache=True,
            timing="per-token",
            post_iteration_hook=keep,
            extra_kwargs={"only_last_token": True},
        )
        steps, peak = seconds[UNTIMED_TOKENS:], self._peak_bytes(cell)
        usage = Usage(1e3 * seconds[0], 1e3 * fmean(steps) if steps else 0.0, peak, peak)
        return Repetition(
            usage, first[0], made[:, ids.shape[1] :].cpu() if steps else torch.empty(0, dtype=torch.long), []
        )

    def _continuation(self, prefill: Any) -> Any:
        """The first tokens behind a prefill, chosen greedily, and on CUDA a recorded step for the others."""
        from heteroring.fms.continuation import Continuation

        prefill.cache.backend = self._backend
        made = Continuation(self.model, prefill, self.job.new_tokens, lambda logits: logits.argmax(-1, keepdim=True))
        self._advance(made, UNTIMED_TOKENS)
        if not self.job.eager:
            made.capture()
        return made

    def _advance(self, made: Any, tokens: int) -> None:
        """Decode until there are `tokens` new tokens, or all."""
        while made.tokens < min(tokens, self.job.new_tokens):
            beat()
            made.advance()

    def _peak_bytes(self, cell: ModelCell) -> int:
        if self.rank.torch_device.type != "cuda":
            return 0
        buffers = 0
        if cell.system == "ring" and self.transport == "copy-engine":
            from heteroring.ring.transport.symmetric_buffer import symmetric_buffer_bytes

            buffers = symmetric_buffer_bytes(dist.group.WORLD, self.rank.torch_device)
        return torch.cuda.max_memory_allocated() + buffers


def made_up(positions: torch.Tensor, width: int, number: int) -> torch.Tensor:
    """Synthetic keys or values, the same on every device.

    They are hashes from -1 to 1; values also rise with the position, so that an average over some of the tokens differs
    from that over all.

    Args:
        positions: Positions of the tokens [n].
        width: Elements of a token.
        number: Which tensor; an even number gives keys, an odd one values.

    Returns:
        [n, width].
    """
    x = positions[:, None] * 0x9E3779B1 + torch.arange(width, device=positions.device) * 0x85EBCA6B + number
    for factor in (0x2C1B3C6D, 0x297A2D39):
        x = (x ^ x >> 15) % 2**31 * factor % 2**31
    return x / 2**30 - 1 + number % 2 * positions[:, None] / 2**14


@contextmanager
def first_layer(model: nn.Module) -> Iterator[None]:
    """Context in which `model` has its first layer only, to run work of every kind and size in a short time."""
    layers = model.base_model.layers
    model.base_model.layers = layers[:1]
    try:
        yield
    finally:
        model.base_model.layers = layers


def _middle_layer(model: nn.Module) -> nn.Module:
    return model.base_model.layers[middle(len(model.base_model.layers))]


def middle(layers: int) -> int:
    """The index of the layer that is traced."""
    return layers // 2


def _shortened(cell: ModelCell, seq_len: int) -> ModelCell:
    """`cell` with a prompt of `seq_len` tokens instead, split evenly."""
    lens = even(seq_len, cell.partition.world_size)
    return replace(cell, partition=Partition(cell.partition.layout, lens))


def compare(repetition: Repetition, logits: torch.Tensor, ids: torch.Tensor) -> Check:
    """`repetition` against the logits [B, V] and ids [B, n] of rank 0 alone."""
    error = ((repetition.logits - logits).norm() / logits.norm()).item()
    same_token = bool((repetition.logits.argmax(-1) == logits.argmax(-1)).all())
    same_ids = int((repetition.ids == ids).long().cumprod(1).sum(1).min()) if repetition.ids.numel() else 0
    return Check(error, same_token, same_ids)
