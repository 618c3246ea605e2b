"""Find values of the configuration that are valid by themselves but exclude each other."""

from collections.abc import Iterator, Mapping, Sequence

from heteroring.results.rank_percentages import ranks_of
from heteroring.results.strategy import CALL_VARIANTS, Strategy


def conflicts(config: Mapping) -> list[str]:
    """An error line for each pair of values that exclude each other, in a `config` that is valid by its schema."""
    found = list(_of_rings(config))
    ranks = len(ranks_of(config["percentages"][0]))
    if (profiled := config["profiled_percentages"]) and 100 not in profiled:
        found.append(f"profiled_percentages: {profiled} lacks 100, the speed of a whole device")
    for platform, settings in config["platforms"].items():
        found += [f"platforms.{platform}.{conflict}" for conflict in _of_shape(settings, config["modules"])]
        if platform == "gpu":
            found += [f"platforms.gpu.{conflict}" for conflict in _of_baselines(settings["seq_lens"], ranks)]
        found += [f"platforms.{platform}.model.{conflict}" for conflict in _of_model(settings["model"])]
        for strategy in (*config["strategies"], *settings["more_strategies"]):
            if "fms" in config["modules"] and set(Strategy(strategy).variants) & set(CALL_VARIANTS):
                found.append(f"strategies: {strategy} varies how a call is made, which module fms does not")
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


def _of_rings(config: Mapping) -> Iterator[str]:
    """All rings must have equally many ranks, and one of them all ranks at full speed."""
    keys = {"percentages": config["percentages"], "headline.percentages": config["headline"]["percentages"]}
    ranks = len(ranks_of(config["percentages"][0]))
    full = 100 if ranks == 2 else [100] * ranks
    for key, entries in keys.items():
        if (100,) * ranks not in map(ranks_of, entries):
            yield f"{key}: {entries} lacks {full}"
    for key, entries in (keys | {"model_percentages": config["model_percentages"]}).items():
        for entry in entries:
            if len(ranks_of(entry)) != ranks:
                yield f"{key}: {entry} is of {len(ranks_of(entry))} ranks, and {config['percentages'][0]} of {ranks}"


def _of_baselines(seq_lens: Sequence[int], ranks: int) -> Iterator[str]:
    """On GPUs, lengths must suit PyTorch's context_parallel, which gives each rank two equal parts."""
    for seq_len in seq_lens:
        if seq_len % (2 * ranks):
            yield (
                f"seq_lens: {seq_len} is not a multiple of {2 * ranks}: context_parallel, measured beside, cannot "
                "share it out"
            )


def _of_model(settings: Mapping) -> Iterator[str]:
    """Sizes of the model must fit one another. A size of 0 is the model's own, which is not known here."""
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
