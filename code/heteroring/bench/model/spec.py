"""The language model to be measured: its name in FMS, its size, and random weights equal on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from heteroring.bench.fms_requirements import check_fms
from heteroring.bench.shape import Shape
from heteroring.results.model_rows import MODEL_COLUMNS
from heteroring.results.rows import DTYPES
from heteroring.words import choices

if TYPE_CHECKING:
    from torch import nn

# What FMS calls the sizes of a model.
_FIELDS = {
    "layers": "nlayers",
    "emb_dim": "emb_dim",
    "heads": "nheads",
    "kv_heads": "kvheads",
    "vocabulary": "src_vocab_size",
    "max_seq_len": "max_expected_seq_len",
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model in its rows, and the limit on its prompts."""

    layers: int
    emb_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_seq_len: int


@dataclass(frozen=True)
class ModelSpec:
    """A model of FMS by name ("llama/3-8b"), and the sizes in which it differs from that; 0 leaves a size as it is.

    Raises ValueError if the name is not an architecture and a variant that heteroring.fms knows, a size cannot be
    changed or does not fit the others, or dtype is unknown; and if ibm-fms is not installed.
    """

    name: str
    dtype: str = "float32"
    layers: int = 0
    emb_dim: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocabulary: int = 0
    max_seq_len: int = 0

    def __post_init__(self) -> None:
        check_fms(f"model {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown: choose {choices(self.dtype, DTYPES)}")
        for size in _FIELDS:
            if getattr(self, size) < 0:
                raise ValueError(f"{size} is {getattr(self, size)}: it must be 1 or more, or 0 for the model's own")
        self.sizes  # noqa: B018  wrong names and sizes are found before anything is measured

    @property
    def architecture(self) -> str:
        """The architecture, such as "llama"."""
        return self.name.partition("/")[0]

    @property
    def variant(self) -> str:
        """The variant of the architecture, such as "3-8b"."""
        return self.name.partition("/")[2]

    @cached_property
    def sizes(self) -> Sizes:
        """All sizes of the model, changed or not."""
        config = _config(self.name)
        own = {size: getattr(config, self._field(size)) for size in _FIELDS}
        chosen = {size: getattr(self, size) or own[size] for size in _FIELDS}
        emb_dim, heads = chosen["emb_dim"], chosen["heads"]
        kv_heads = chosen["kv_heads"] = chosen["kv_heads"] or heads  # FMS's 0: as many as heads
        if emb_dim % heads:
            raise ValueError(f"emb_dim {emb_dim} is not a multiple of heads {heads}")
        if heads % kv_heads:
            raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
        head_dim = getattr(config, "head_dim", emb_dim // heads)
        if head_dim % 2:
            raise ValueError(f"a head of {self.name} is {head_dim} wide here: rotary positions need an even width")
        return Sizes(**chosen, head_dim=head_dim)

    @property
    def columns(self) -> dict[str, Any]:
        """The values of the columns of rows that describe the model."""
        named = {"architecture": self.architecture, "variant": self.variant, "dtype": self.dtype}
        return {name: named.get(name) or getattr(self.sizes, name) for name in MODEL_COLUMNS}

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        return getattr(torch, self.dtype)

    def shape(self, batch: int) -> Shape:
        """The model's attention."""
        return Shape(batch, self.sizes.heads, self.sizes.kv_heads, self.sizes.head_dim, self.dtype)

    def build(self, device: torch.device, seed: int) -> nn.Module:
        """The model with random weights, rank 0's on every rank of the default group, if there is one."""
        from heteroring import fms

        torch.manual_seed(seed)
        model = fms.get_model(
            self.architecture, self.variant, device_type=device.type, data_type=self.torch_dtype, **self._changes()
        )
        if dist.is_initialized():
            # From one seed, GPUs with different numbers of SMs draw different numbers.
            for weight in (*model.parameters(), *model.buffers()):
                dist.broadcast(weight.data, src=0)
        return model

    def _changes(self) -> dict[str, int]:
        """The changed sizes, by FMS's names."""
        return {self._field(size): getattr(self, size) for size in _FIELDS if getattr(self, size)}

    def _field(self, size: str) -> str:
        return "dim" if size == "emb_dim" and self.architecture == "mixtral" else _FIELDS[size]


@cache
def _config(name: str) -> Any:
    """FMS's own configuration of a model."""
    from heteroring import fms

    architecture, slash, variant = name.partition("/")
    if not slash:
        raise ValueError(f"model {name!r} is not an architecture and a variant, such as llama/3-8b")
    return fms.get_model(architecture, variant, device_type="meta").config
