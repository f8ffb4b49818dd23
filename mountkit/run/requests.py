"""A run's wishes as JSON, for its record and for `mountkit rerun`: without the value of anything secret."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from mountkit.errors import UsageError
from mountkit.run.docker_spec import HIDDEN, redacted, redacted_arguments
from mountkit.run.output import Blotter
from mountkit.run.plan import Input, Output, RunDefaults, Secret, Ulimit, Volume


def to_json(wanted: RunDefaults) -> dict[str, Any]:
    """`wanted` (merged) as plain data; telling variables and arguments hidden, secrets by where they come from."""
    shown = replace(
        wanted,
        environment=redacted(wanted.environment),
        arguments=tuple(redacted_arguments(wanted.arguments or ())),
        rewrite=None,
    )
    return {name: value for name, value in asdict(shown).items() if value not in (None, (), [], {})}


def from_json(data: Mapping[str, Any], surroundings: Mapping[str, str] | None = None) -> RunDefaults:
    """The wishes again; hidden variables come from this environment. Raises UsageError where something is lost."""
    around = os.environ if surroundings is None else surroundings
    known = {each.name for each in fields(RunDefaults)}
    found = {name: value for name, value in data.items() if name in known}
    found["inputs"] = tuple(Input(**one) for one in found.get("inputs") or ())
    found["outputs"] = tuple(Output(**one) for one in found.get("outputs") or ())
    found["volumes"] = tuple(Volume(**one) for one in found.get("volumes") or ())
    found["secrets"] = tuple(Secret(**one) for one in found.get("secrets") or ())
    found["ulimits"] = {name: Ulimit(**one) for name, one in (found.get("ulimits") or {}).items()}
    found["arguments"] = tuple(found.get("arguments") or ()) or None
    for argument in found["arguments"] or ():
        if argument == HIDDEN or argument.endswith(f"={HIDDEN}"):
            raise _lost(f"the argument {argument.partition('=')[0]}" if "=" in argument else "an argument")
    for secret in found["secrets"]:
        if secret.source.startswith("fd:"):
            raise _lost(f"the secret {secret.name}")
    environment = dict(found.get("environment") or {})
    for name in [name for name, value in environment.items() if value == HIDDEN]:
        if name not in around:
            raise _lost(f"the variable {name}")
        environment[name] = around[name]
    return RunDefaults(**{**found, "environment": environment})


def without(data: Any, secrets: Iterable[bytes]) -> Any:
    """`data` with the values of `secrets` blotted out of every text in it, wherever somebody wrote them once more."""
    if isinstance(data, str):
        blotter = Blotter(secrets)
        return os.fsdecode(blotter.feed(os.fsencode(data)) + blotter.rest())
    if isinstance(data, Mapping):
        return {name: without(value, secrets) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without(one, secrets) for one in data]
    return data


def _lost(what: str) -> UsageError:
    return UsageError(
        f"{what} of that run was secret, so its value is not kept", "start it anew with `mountkit run` and give it"
    )
