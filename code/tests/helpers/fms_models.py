"""Tiny models of each FMS architecture with random weights, equal for a seed in every process."""

import fms.models
import torch

from heteroring.fms import get_model

MAX_SEQ_LEN = 192

_LLAMA = {
    "emb_dim": 64,
    "nheads": 4,
    "nlayers": 2,
    "src_vocab_size": 97,
    "multiple_of": 16,
    "max_expected_seq_len": MAX_SEQ_LEN,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name -> (architecture, variant, what its configuration differs in)
TINY = {
    "llama": ("llama", "micro", _LLAMA),
    "llama3": ("llama", "3-8b", {**_LLAMA, "kvheads": 2, "rope_scaling": _LLAMA3_ROPE}),
    "granite": (
        "granite",
        "8b",
        {**_LLAMA, "head_dim": 16, "kvheads": 2, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "pad_id": -1},
    ),
    "mistral": ("mistral", "7b", {**_LLAMA, "head_dim": 16, "kvheads": 1}),
    "mixtral": (
        "mixtral",
        "8x7b",
        {"dim": 64, "nheads": 4, "kvheads": 2, "nlayers": 2, "hidden_dim": 96, "num_experts": 4}
        | {"src_vocab_size": 97, "max_expected_seq_len": MAX_SEQ_LEN},
    ),
}


def stock(name, seed=0, **changes):
    """The model as FMS makes it in one process, with attention and logits that are far from uniform."""
    architecture, variant, config = TINY[name]
    torch.manual_seed(seed)
    # Named, because FMS would shard its weights (tensor parallelism) where there are several ranks.
    changes = {"distributed_strategy": "none", **changes}
    return sharpen(fms.models.get_model(architecture, variant, **(config | changes)).eval())


def ring(name, seed=0, **changes):
    """The same model, by the ring's get_model."""
    architecture, variant, config = TINY[name]
    torch.manual_seed(seed)
    return sharpen(get_model(architecture, variant, **(config | changes)))


def sharpen(model):
    """Larger weights than FMS starts from, whose nearly uniform attention hides a lost key; biases other than 0."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
            elif "in_proj" in name:
                weight.mul_(8.0)
    return model


def prompt(length, batch=1, seed=1, vocabulary=97):
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
