"""Fitted speed and cost models by name: fitting, loading, and finding the model that an allocator needs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.fitted_model import FittedModel
from heteroring.allocators.formula import Formula
from heteroring.allocators.lut import LookupTable
from heteroring.allocators.profile_table import PathLike, read_latencies
from heteroring.files import read_json
from heteroring.results.strategy import NEEDS
from heteroring.words import choices

MODELS: dict[str, type[FittedModel]] = {model.kind: model for model in (LookupTable, Formula, CostModel)}


def fit(kind: str, source: str | None, profile_paths: PathLike | Iterable[PathLike]) -> FittedModel:
    """Fit a speed or cost model to profiles.

    Args:
        kind: "lut" or "formula", speed models of matmul or attention; "cost", the cost model of attention, layer or
            block, which also needs rows of attention and takes those of `fold` and `join` where there are any.
        source: The operator to fit to. None stands for attention with "cost"; otherwise for matmul where the files hold
            it, and attention where not.
        profile_paths: One profile CSV, or several that are read as one.

    Returns:
        The fitted model.

    Raises:
        ValueError: For an unknown kind or source, and for files that cannot be read or fitted.
    """
    return _model_class(kind).from_profiles(profile_paths, source)


def load_model(path: PathLike) -> FittedModel:
    """Load a fitted model.

    Args:
        path: A JSON file that `FittedModel.save` wrote.

    Returns:
        The model.

    Raises:
        ValueError: Naming the file, if it does not hold a model.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a model file (a JSON object is needed)")
    try:
        return _model_class(content.get("kind")).from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a valid model file: {error}") from error


def model_for(allocator: str, profile: FittedModel | PathLike | None) -> FittedModel:
    """The model that an allocator works with: as given, loaded, or fitted to a profile CSV.

    Args:
        allocator: A key of NEEDS.
        profile: A fitted model, the path of its JSON file, or that of a profile CSV. For `balanced` and a CSV, the
            model is the cost model of attention if there are rows of kind `fold`, else the table of attention's speeds.

    Returns:
        The model.

    Raises:
        ValueError: Naming what is needed, if `profile` is None or holds something else.
    """
    kinds = " or ".join(
        f"{kind} model" + (f" fitted to the {source} profile" if source else "") for kind, source in NEEDS[allocator]
    )
    needs = f"allocator {allocator!r} needs a {kinds}"
    if isinstance(profile, str | os.PathLike):
        path = Path(profile)
        model = _fitted_to(allocator, path) if path.suffix == ".csv" else load_model(path)
    elif isinstance(profile, FittedModel):
        model = profile
    else:
        given = "none was given" if profile is None else f"got {type(profile).__name__}"
        raise ValueError(f"{needs}, the path of its JSON file or of a profile CSV as `profile`; {given}")
    if not any(model.kind == kind and source in (None, model.source) for kind, source in NEEDS[allocator]):
        raise ValueError(f"{needs}; got a {model.kind} model fitted to the {model.source} profile")
    return model


def _fitted_to(allocator: str, path: Path) -> FittedModel:
    if allocator != "balanced":
        return fit(allocator, None, path)
    return fit("cost" if "fold" in read_latencies(path) else "lut", "attention", path)


def _model_class(kind: Any) -> type[FittedModel]:
    if kind not in tuple(MODELS):  # by equality: a damaged file may hold a kind that cannot be hashed
        raise ValueError(f"model kind {kind!r} is unknown: choose {choices(kind, MODELS)}")
    return MODELS[kind]
