"""Hold the configuration against its schema, and say what is wrong in one line each."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from workflow.scripts.conflicts import conflicts


def _unknown_keys(error: ValidationError) -> Iterator[str]:
    known = list(error.schema["properties"])
    group = "".join(f"{name}." for name in error.absolute_path)
    for name in error.instance:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {group}{close[0]}?" if close else f"one of {', '.join(known)}"
            yield f"unknown key {group}{name}: {hint}"


def problems(config: Mapping, schema: Mapping) -> list[str]:
    """Every rule of `schema` that `config` breaks, naming key and value; empty if there is none."""
    found = []
    for error in Draft202012Validator(schema).iter_errors(config):
        key = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            found += _unknown_keys(error)
        elif error.validator == "contains":
            found.append(f"{key}: {error.instance} lacks {error.validator_value['const']}")
        else:
            found.append(f"{key}: {error.message}")
    return found


def check(config: Mapping, schema: Path) -> None:
    """Raise ValueError that lists what is wrong with `config`, if anything is."""
    found = problems(config, yaml.safe_load(schema.read_text())) or conflicts(config)
    if found:
        raise ValueError("\n".join(["configuration:", *found]))
