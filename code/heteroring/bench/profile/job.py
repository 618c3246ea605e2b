"""The job of `heteroring profile`: one rank at one percentage, and the kinds of operators timed on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from heteroring.bench.base_job import Job, check_lengths, check_warmup
from heteroring.bench.fms_requirements import check_fms, check_layer
from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.shape import Shape
from heteroring.results import operator_kinds
from heteroring.words import check_distinct, choices

# A profile of kind `fold` also holds kind `join`.
KINDS = tuple(kind for kind in operator_kinds.KINDS if kind != "join")
VOCABULARY = 32  # of the embedding and head around the block, which are not timed


@dataclass(frozen=True, kw_only=True)
class ProfileJob(Job):
    """Settings of `heteroring profile`: one rank at one percentage.

    kinds: the kinds to time (see heteroring.bench.profile.operators), matmuls at `sizes` and all others at `seq_lens`;
    a list that no kind uses may be empty. fms_seq_lens: the lengths of the kind `layer`, if not seq_lens. model:
    architecture/variant whose transformer block is timed by the kind `block`.
    """

    sizes: tuple[int, ...]
    seq_lens: tuple[int, ...]
    kinds: tuple[str, ...] = KINDS[:3]
    shape: Shape = field(default_factory=Shape)
    model: str = ""
    warmup: int = 1
    fms_seq_lens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_warmup(self.warmup)
        check_distinct("kinds", self.kinds)
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"profile kind {kind!r} is unknown: choose {choices(kind, KINDS)}")
        if "matmul" in self.kinds or self.sizes:
            check_lengths("sizes", self.sizes)
        if set(self.kinds) - {"matmul"} or self.seq_lens:
            check_lengths("seq_lens", self.seq_lens)
        if self.fms_seq_lens:
            check_lengths("fms_seq_lens", self.fms_seq_lens)
            if "layer" not in self.kinds:
                raise ValueError("fms_seq_lens is given, but kind 'layer' is not measured")
        if "layer" in self.kinds:
            check_layer("profile kind 'layer'", self.shape.head_dim)
        if "block" in self.kinds:
            check_fms("profile kind 'block'")
            self.one_layer  # noqa: B018  a model without blocks of the shape is found before anything is measured

    def sizes_of(self, kind: str) -> tuple[int, ...]:
        """The sizes at which `kind` is measured.

        A layer's cost model needs its attention and further ring steps, so kinds attention and fold are measured at the
        lengths of layers, too.
        """
        if kind == "matmul":
            return self.sizes
        if kind == "layer":
            return self.fms_seq_lens or self.seq_lens
        if kind in ("attention", "fold"):
            return tuple(dict.fromkeys((*self.seq_lens, *self.fms_seq_lens)))
        return self.seq_lens

    @cached_property
    def one_layer(self) -> ModelSpec:
        """The model whose block is timed, with one layer. Raises ValueError if it has no blocks of the job's shape."""
        shape = self.shape
        if not self.model:
            raise ValueError("profile kind 'block' needs a model: its architecture and variant, such as llama/3-8b")
        spec = ModelSpec(
            self.model,
            shape.dtype,
            layers=1,
            emb_dim=shape.emb_dim,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            vocabulary=VOCABULARY,
            max_seq_len=max(self.seq_lens),
        )
        if spec.sizes.head_dim != shape.head_dim:
            raise ValueError(f"head_dim is {shape.head_dim}: {self.model} has heads of {spec.sizes.head_dim}")
        return spec
