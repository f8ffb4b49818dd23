"""Settings: Hydra's `name=value` arguments in, frozen values out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """What was asked makes no sense; says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run is to do."""

    n_samples: int | float | None = None
    """A number of pictures, or below 1 a share of them; None: half of them."""
    min_distance: float = 0.0
    method: str = "coreset"
    enable_corruptness_check: bool = True
    remove_exact_duplicates: bool = True
    batch_size: int = 16
    num_workers: int = -1
    """-1: as many as there are cores."""
    seed: int = 1

    def wanted(self, available: int) -> int:
        """How many of `available` pictures to choose."""
        if self.n_samples is None:
            return math.ceil(available / 2)
        number = math.ceil(self.n_samples * available) if isinstance(self.n_samples, float) else self.n_samples
        return min(number, available)


def _samples(text: str) -> int | float:
    try:
        number: int | float = int(text)
    except ValueError:
        number = _number(text)
        if number >= 1:
            raise ValueError("a whole number, or a share below 1") from None
    if number <= 0:
        raise ValueError("more than 0")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError("a number of 0 or more")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("True or False")
    return text.lower() in ("true", "1", "yes")


def _method(text: str) -> str:
    if text not in ("coreset", "random"):
        raise ValueError("coreset or random")
    return text


def _not_here(text: str) -> None:
    if _truth(text):
        raise ValueError("False, as this stand-in trains no model")


_ARGUMENTS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "n_samples": ("n_samples", _samples),
    "stopping_condition.n_samples": ("n_samples", _samples),
    "stopping_condition.min_distance": ("min_distance", _number),
    "method": ("method", _method),
    "enable_corruptness_check": ("enable_corruptness_check", _truth),
    "remove_exact_duplicates": ("remove_exact_duplicates", _truth),
    "lightly.loader.batch_size": ("batch_size", _whole),
    "lightly.loader.num_workers": ("num_workers", _whole),
    "lightly.seed": ("seed", _whole),
    "enable_training": ("", _not_here),
    "token": ("token", str),
}


def parse(arguments: Sequence[str], surroundings: Mapping[str, str]) -> Settings:
    """The settings that `arguments` mean. Raises Refused, also without a token in either place."""
    found: dict[str, Any] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator:
            raise Refused(f"`{name}` is no argument of the form name=value")
        if name not in _ARGUMENTS:
            near = difflib.get_close_matches(name, _ARGUMENTS, n=1)
            raise Refused(f"there is no setting `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
        field, read = _ARGUMENTS[name]
        try:
            found[field] = read(value)
        except ValueError as exc:
            raise Refused(f"`{name}` must be {exc}, and `{value}` is not") from None
    found.pop("", None)
    if not (found.pop("token", "") or surroundings.get("LIGHTLY_TOKEN")):
        raise Refused("there is no token: give token=… or set LIGHTLY_TOKEN")
    return Settings(**found)
