"""JSON to frozen dataclasses by their type hints, for files that a person may have edited.

Knows types only; what values mean and how they hang together is up to the caller.
"""

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def from_json(kind: Any, value: Any, place: str = "") -> Any:
    """`value` as `kind`: a dataclass, tuple[X, ...], dict[str, X], Literal, X | None, str, bool, int or float.

    Raises:
        ValueError: `place` with what was found and what was expected; a key without default that is missing, or an unknown one.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, place)
    if origin in (Union, UnionType):
        return None if value is None else from_json(parts[0], value, place)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(parts[0], part, f"{place}[{index}]") for index, part in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: from_json(parts[1], part, f"{place}.{key}") for key, part in value.items()}
    if origin is Literal and value in parts:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is kind:
        return value
    expected = {tuple: "a list", dict: "keys with values"}.get(origin) or (
        f"one of {', '.join(map(str, parts))}" if parts else kind.__name__
    )
    raise ValueError(f"{place} is {value!r}, {expected} expected")


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {value!r}, keys with values expected")
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    missing, unknown = sorted(needed - value.keys()), sorted(value.keys() - known)
    if missing or unknown:
        wrong = [f"no {name}" for name in missing] + [f"unknown {name}" for name in unknown]
        raise ValueError(f"{place + ' has ' if place else ''}{', '.join(wrong)}")
    hints, prefix = get_type_hints(kind), place and f"{place}."
    return kind(**{name: from_json(hints[name], part, f"{prefix}{name}") for name, part in value.items()})
