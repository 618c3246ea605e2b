"""Validate the configuration against its schema, with one error line per defect."""

import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from workflow.preflight.conflicts import conflicts

from heteroring.results.strategy import Strategy
from heteroring.words import choices, closest

# Keys whose values name folders.
NAMES = ("run", "platform")


def _is_integer(checker: TypeChecker, value: Any) -> bool:
    """In JSON, 50.0 is an integer; in file names and command lines it is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: TypeChecker, value: Any) -> bool:
    """YAML has .nan and .inf, which `minimum` and `maximum` do not exclude."""
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


def _pattern(validator: Any, pattern: str, value: Any, schema: Mapping) -> Iterator[ValidationError]:
    """`$` alone would also match before a line end."""
    if isinstance(value, str) and not re.fullmatch(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_Validator = extend(
    Draft202012Validator,
    {"pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number}),
)


_FORMATS = FormatChecker(())


@_FORMATS.checks("strategy", raises=ValueError)
def _is_strategy(value: Any) -> bool:
    return not isinstance(value, str) or bool(Strategy(value))


def _unknown_keys(error: ValidationError) -> Iterator[str]:
    known = list(error.schema["properties"])
    group = "".join(f"{name}." for name in error.absolute_path)
    for name in error.instance:
        if name not in known:
            close = closest(name, known)
            hint = f"did you mean {group}{close}?" if close else f"one of {', '.join(known)}"
            yield f"unknown key {group}{name}: {hint}"


def _missing_keys(config: Any, schema: Mapping, group: str = "") -> Iterator[str]:
    """Required keys that are missing: the defaults have every key, but --replace-workflow-config ignores them."""
    for name, entry in schema["properties"].items() if isinstance(config, Mapping) else ():
        if name not in config:
            yield f"key {group}{name} is missing"
        elif entry.get("type") == "object":
            yield from _missing_keys(config[name], entry, f"{group}{name}.")


def _wrong_type(error: ValidationError) -> str:
    value, wanted = error.instance, error.validator_value
    if isinstance(value, float) and wanted == "number":
        return f"{value} is not a finite number"
    if wanted == "string" and "pattern" in error.schema and not isinstance(value, float):
        return f"{value!r} is not of type 'string': put it in quotes if it is meant as one"
    if isinstance(value, str) and value.isdigit() and len(error.absolute_path) > 1:
        return f"{error.message}; inside lists and groups, --config makes text of everything, and --configfile does not"
    return error.message


def problems(config: Mapping, schema: Mapping) -> list[str]:
    """Every rule of `schema` that `config` breaks, naming key and value; empty if there is none."""
    found = list(_missing_keys(config, schema))
    for error in _Validator(schema, format_checker=_FORMATS).iter_errors(config):
        key = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            found += _unknown_keys(error)
        elif error.validator == "contains":
            found.append(f"{key}: {error.instance} lacks {error.validator_value['const']}")
        elif error.validator == "type":
            found.append(f"{key}: {_wrong_type(error)}")
        elif error.validator == "format":
            found.append(f"{key}: {error.cause}")
        elif error.validator == "enum":
            found.append(f"{key}: {error.instance!r} is not {choices(error.instance, error.validator_value)}")
        else:
            found.append(f"{key}: {error.message}")
    return found


def check(config: MutableMapping, schema: Path) -> None:
    """Raise ValueError that lists what is wrong with `config`, if anything is.

    The name of a run or platform that was read as an integer, such as 4090, becomes a string.
    """
    for key in NAMES:
        if _is_integer(_Validator.TYPE_CHECKER, config.get(key)):
            config[key] = str(config[key])
    found = problems(config, yaml.safe_load(schema.read_text())) or conflicts(config)
    if found:
        raise ValueError("\n".join(["configuration:", *found]))
