"""Find values of the configuration that are valid by themselves but exclude each other. Standard library only."""

from collections.abc import Iterator, Mapping, Sequence


def conflicts(config: Mapping) -> list[str]:
    """Every pair of values in a `config` that keeps to its schema of which one excludes the other."""
    found = []
    for platform, settings in config["platforms"].items():
        found += [f"platforms.{platform}.{conflict}" for conflict in _of_shape(settings, config["modules"])]
        if platform == "gpu":
            found += [f"platforms.gpu.{conflict}" for conflict in _of_peers(settings["seq_lens"])]
        found += [f"platforms.{platform}.model.{conflict}" for conflict in _of_model(settings["model"])]
        for strategy in settings["more_strategies"]:
            if strategy in config["strategies"]:
                found.append(f"platforms.{platform}.more_strategies: {strategy} is one of strategies already")
    return found


def _of_shape(settings: Mapping, modules: Sequence[str]) -> Iterator[str]:
    heads, kv_heads, head_dim = settings["heads"], settings["kv_heads"], settings["head_dim"]
    if heads % kv_heads:
        yield f"heads: {heads} is not a multiple of kv_heads, {kv_heads}"
    if "fms" in modules and head_dim % 2:
        yield f"head_dim: {head_dim} is odd, and module fms has rotary positions, which need an even width"


def _of_peers(seq_lens: Sequence[int]) -> Iterator[str]:
    """GPUs are measured beside PyTorch's context_parallel, which gives each of two ranks two equal parts."""
    for seq_len in seq_lens:
        if seq_len % 4:
            yield f"seq_lens: {seq_len} is not a multiple of 4: context_parallel, measured beside, cannot share it out"


def _of_model(settings: Mapping) -> Iterator[str]:
    """0 is the model's own size, which is not known here; a block's profile is given the width of a head."""
    batches, longest = [each["batch"] for each in settings["decode"]], max(settings["seq_lens"])
    if len(set(batches)) < len(batches):
        yield f"decode: of the batches {', '.join(map(str, batches))} one is there twice"
    if any(each["batch"] == 1 and longest in each["seq_lens"] for each in settings["decode"]):
        yield f"decode: batch 1 at {longest} tokens is measured behind the longest prompt already"
    emb_dim, heads, kv_heads = settings["emb_dim"], settings["heads"], settings["kv_heads"]
    if emb_dim and not heads:
        yield f"heads: 0, the model's own, does not go with emb_dim, {emb_dim}, which is set: set heads as well"
    elif heads and emb_dim % heads:
        yield f"emb_dim: {emb_dim} is not a multiple of heads, {heads}"
    elif heads and emb_dim // heads % 2:
        yield f"emb_dim: {emb_dim} in {heads} heads makes them odd, and rotary positions need an even width"
    if heads and kv_heads and heads % kv_heads:
        yield f"heads: {heads} is not a multiple of kv_heads, {kv_heads}"
