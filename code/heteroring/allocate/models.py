"""Fitted models by name: fitting, loading, and finding the one that an allocator needs."""

import os
from collections.abc import Iterable
from pathlib import Path

from heteroring.allocate.formula import Formula
from heteroring.allocate.lut import LookupTable
from heteroring.allocate.profile_table import PathLike, read_profile
from heteroring.allocate.speed_model import SpeedModel, read_json

MODELS: dict[str, type[SpeedModel]] = {model.kind: model for model in (LookupTable, Formula)}

# Allocator -> kind of model it needs, and the operator that must have been fitted (None: either).
NEEDS = {"lut": ("lut", None), "formula": ("formula", None), "balanced": ("lut", "attention")}


def fit(kind: str, source: str | None, profile_paths: PathLike | Iterable[PathLike]) -> SpeedModel:
    """Fit a model (`lut` or `formula`) to the `source` rows (`matmul` or `attention`) of profile CSVs.

    `source` None means matmul where the files hold it, attention otherwise. Raises ValueError for an unknown
    kind or source and for whatever `read_profile` refuses.
    """
    return _model_class(kind).fit(read_profile(profile_paths, source))


def load_model(path: PathLike) -> SpeedModel:
    """The model saved in a JSON file. Raises ValueError, naming the file, if it does not hold one."""
    content = read_json(Path(path))
    try:
        return _model_class(content.get("kind")).from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a valid model file: {error}") from error


def model_for(allocator: str, profile: SpeedModel | PathLike | None) -> SpeedModel:
    """The model that `allocator` (a key of NEEDS) works with: as given, loaded, or fitted to a profile CSV.

    Raises ValueError, naming what is needed, if `profile` is None or holds something else.
    """
    kind, source = NEEDS[allocator]
    needs = f"allocator {allocator!r} needs a {kind} model" + (f" fitted to the {source} profile" if source else "")
    if isinstance(profile, str | os.PathLike):
        path = Path(profile)
        model = fit(kind, source, path) if path.suffix == ".csv" else load_model(path)
    elif isinstance(profile, SpeedModel):
        model = profile
    else:
        given = "none was given" if profile is None else f"got {type(profile).__name__}"
        raise ValueError(f"{needs}, the path of its JSON file or of a profile CSV as `profile`; {given}")
    if model.kind != kind or source not in (None, model.source):
        raise ValueError(f"{needs}; got a {model.kind} model fitted to the {model.source} profile")
    return model


def _model_class(kind: str) -> type[SpeedModel]:
    if kind not in tuple(MODELS):  # by equality: a damaged file may hold a kind that cannot be hashed
        raise ValueError(f"model kind {kind!r} is unknown: choose one of {', '.join(MODELS)}")
    return MODELS[kind]
