"""Common parts of the figures of simulated rings: the platform, the strategies' looks, and a caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heteroring.figures.select_rows import MissingRows, throttle
from heteroring.planning.recorded_platform import RecordedPlatform
from heteroring.results.strategy import fitted_name
from heteroring.results.throttle_words import throttle_words

if TYPE_CHECKING:
    from heteroring.results.results import Results

# Colours and markers are those of the strategies; a split in proportion to measured speeds looks like `lut`.
LOOKS = {"even": "even", "proportional": "lut", "balanced": "balanced"}


def platform_of(results: Results) -> RecordedPlatform:
    """The platform of the results; MissingRows if the cost of further ring steps was not profiled there."""
    name = fitted_name("cost", "attention")
    if name not in results.fitted_models:
        raise MissingRows(f"no cost model of the attention call (models/{name}.json)")
    return RecordedPlatform.of(results.fitted_models[name], gpu=bool(results.provenance["multiprocessors"]))


def cause(results: Results) -> str:
    """The cause of slow ranks, to put behind a percentage."""
    return throttle_words(throttle(results)).cause


def said(platform: RecordedPlatform) -> str:
    """A phrase on the simulation, for captions."""
    setup = platform.cost_model.setup
    heads = setup["heads"] if setup["heads"] == setup["kv_heads"] else f"{setup['heads']}:{setup['kv_heads']}"
    return f"Simulated, not measured: causal attention, {heads} heads of {setup['head_dim']}, {setup['dtype']}, zigzag"
