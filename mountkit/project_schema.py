"""The JSON Schema of mountkit.yaml, for editors: made of the same tables as the command line.

`mountkit config schema` prints it; docs/mountkit.schema.json is that output, and a test compares them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mountkit.config import Option
from mountkit.project import MOUNT_KEYS
from mountkit.run import entries
from mountkit.run.options import RunOption

_VALUE = {"type": ["string", "number", "integer"]}
_SWITCH = {"type": ["boolean", "string"]}
_BY_NAME = ("env", "secrets", "ulimits", "labels")


def schema() -> dict[str, Any]:
    """The schema as data."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mountkit.yaml",
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {"^x-": {}},
        "properties": {
            "mounts": {"type": ["object", "null"], "additionalProperties": _mount()},
            "runs": {"type": ["object", "null"], "additionalProperties": _run()},
        },
    }


def as_text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


def _mount() -> dict[str, Any]:
    own = {key: {"type": "string", "description": words} for key, words in MOUNT_KEYS.items()}
    return _object({**own, **_mount_options()}, required=list(MOUNT_KEYS))


def _run() -> dict[str, Any]:
    properties = {key: {**_VALUE, "description": words} for key, words in entries.OWN_KEYS.items()}
    for switch in ("tty", "gpus-optional"):
        properties[switch] = {**_SWITCH, "description": entries.OWN_KEYS[switch]}
    properties["args"] = {**_one_or_more(_VALUE), "description": entries.OWN_KEYS["args"]}
    properties["mount"] = {**_object(_mount_options()), "description": entries.OWN_KEYS["mount"]}
    properties |= {key: _run_option(key, option) for key, option in entries.OPTION_KEYS.items()}
    return _object(properties, required=["image"])


def _run_option(key: str, option: RunOption) -> dict[str, Any]:
    words = {"description": option.words}
    if option.parse is None:
        return {**_SWITCH, **words}
    if not option.multiple:
        return {**_VALUE, **words}
    one: dict[str, Any] = {"type": "string"}
    place = {"source": {"type": "string"}, "target": {"type": "string"}}
    if key == "inputs":
        one = {"anyOf": [one, _object({**place, **_mount_options()}, required=["source"])]}
    elif key == "outputs":
        one = {"anyOf": [one, _object(place, required=["source"])]}
    elif key == "volumes":
        one = {"anyOf": [one, _object({**place, "read-only": _SWITCH}, required=["source"])]}
    several = _one_or_more(one)
    if key in _BY_NAME:
        several["anyOf"].append({"type": "object", "additionalProperties": _named_value(key)})
    return {**several, **words}


def _named_value(key: str) -> dict[str, Any]:
    if key != "secrets":
        return {"type": [*_VALUE["type"], "null"]}
    place = {"from": {"type": "string"}, "variable": {"type": "string"}}
    return {"anyOf": [{"type": "string"}, _object(place, required=["from"])]}


def _mount_options() -> dict[str, Any]:
    return {key: _mount_option(option) for key, option in entries.MOUNT_KEYS.items()}


def _mount_option(option: Option) -> dict[str, Any]:
    return {**(_SWITCH if option.parse is None else _VALUE), "description": option.words}


def _one_or_more(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _object(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return {**found, "required": required} if required else found
