"""What keys a block of a config has and what its values may be: in words and as a test."""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

# Arguments that no config gives, of the functions whose arguments are a block's keys.
NOT_FROM_CONFIG = {
    *("self", "parent", "name", "dtype", "remat"),
    *("estimate_fn", "lr", "rng", "image", "schedule", "shared"),
}


class Rule(NamedTuple):
    """What a value must be."""

    wish: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def at_least(least: int, meaning: str = "") -> Rule:
    """Ask for a number from `least` on."""
    return Rule(f"at least {least}{meaning}", lambda value: is_number(value) and value >= least)


def whole(low: int, high: int, multiple: int = 1) -> Rule:
    """Ask for a whole number of a range, both ends in it, that `multiple` divides."""
    kind = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
    return Rule(
        f"{kind} in {low}..{high}",
        lambda value: type(value) is int and low <= value <= high and value % multiple == 0,
    )


def several(rule: Rule, most: int) -> Rule:
    """Ask for 1 to `most` values, each of which `rule` takes."""
    return Rule(
        f"1 to {most} values, each {rule.wish}",
        lambda values: 1 <= len(values) <= most and all(map(rule.holds, values)),
    )


def one_of(*choices: str) -> Rule:
    """Ask for one of some texts."""
    names = ", ".join(choice or "''" for choice in choices)
    return Rule(f"one of {names}", lambda value: value in choices)


SHARE = Rule("in 0..1", lambda value: is_number(value) and 0 <= value <= 1)
POSITIVE = Rule("above 0", lambda value: is_number(value) and value > 0)
BOOL = Rule("True or False", lambda value: type(value) is bool)


def holds(rule: Rule, value: Any) -> bool:
    """Tell whether a value is as a rule wishes, whatever its type."""
    try:
        return bool(rule.holds(value))
    except (TypeError, ValueError, IndexError):  # of another type, or another number of values
        return False


def check_values(values: Iterable[tuple[str, Any, Rule]]) -> None:
    """Raise ValueError, naming the wish, for the first value, by its path, that can't be."""
    for name, value, rule in values:
        if not holds(rule, value):
            raise ValueError(f"config.{name} is {value!r}: it must be {rule.wish}")


def check_keys(path: str, block: Any, known: Collection[str], whole: bool = True) -> None:
    """Raise ValueError unless the block at `path` is one of the keys `known`, no more, no less.

    One that need not be `whole` may have less.
    """
    if not hasattr(block, "keys"):
        raise ValueError(f"{name(path)} is {block!r}, but must be a block of keys")
    for key in block:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"nothing reads {name(path, key)}: {hint}")
    for key in sorted(set(known) - set(block)) if whole else ():
        raise ValueError(f"{name(path, key)} is missing: the other configs show a value")


def arguments(function: Callable[..., Any]) -> set[str]:
    """Name the arguments of a function, or of a network, that a config gives."""
    return set(inspect.signature(function).parameters) - NOT_FROM_CONFIG


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its path: {"data.crop_size": 256, ...}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def name(*path: str) -> str:
    """Name a value of a config: "config.data.crop_size"."""
    return ".".join(filter(None, ("config", *path)))
