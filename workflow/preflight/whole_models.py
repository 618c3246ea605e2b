"""Check before any job starts that FMS can build the language models to be measured."""

from collections.abc import Mapping
from pathlib import Path

import yaml

SIZES = ("layers", "emb_dim", "heads", "kv_heads")


def check_models(config: Mapping, defaults: Path) -> None:
    """Raise ValueError, naming the key, unless the models of `config` can be built.

    Importing FMS takes seconds, so only models with other names than those in the file `defaults` are built.
    """
    shipped = {each["model"]["name"] for each in yaml.safe_load(defaults.read_text())["platforms"].values()}
    for platform, settings in config["platforms"].items():
        model = settings["model"]
        if model["name"] not in shipped:
            from heteroring.bench.model.spec import ModelSpec

            try:
                ModelSpec(model["name"], model["dtype"], **{size: model[size] for size in SIZES})
            except ValueError as error:
                raise ValueError(f"configuration:\nplatforms.{platform}.model: {model['name']}: {error}") from error
