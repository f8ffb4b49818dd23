"""Presets: what an image expects, as data files beside this module.

A preset says where inputs and outputs go, which variables and limits the program wants, and which of its `name=value`
arguments are secrets. It is chosen by the image's name (registry and tag do not matter) or by `--preset`; every other
image gets `generic`. Flags and the entry of mountkit.yaml win over it.
"""

from __future__ import annotations

import difflib
import functools
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from mountkit import yamlfile
from mountkit.errors import UsageError
from mountkit.run import entries, hidden
from mountkit.run.plan import DEFAULT_INPUT, DEFAULT_OUTPUT, RunDefaults, Secret, merge
from mountkit.yamlfile import Row, Table, require_table, require_word

GENERIC = "generic"
_OWN_KEYS = ("words", "images", "secret-arguments", "place-variables")


@dataclass(frozen=True, slots=True)
class Preset:
    """One data file."""

    name: str
    words: str
    images: tuple[str, ...]
    secret_arguments: Mapping[str, Secret]
    """By the `name` of a `name=value` argument: the secret it becomes, its source still open."""
    input_variable: str
    """Variable that tells the program where its first input is; "": none."""
    output_variable: str
    defaults: RunDefaults

    def covers(self, image: str) -> bool:
        return _plain_name(image) in self.images

    def __repr__(self) -> str:
        return f"<Preset {self.name} for {', '.join(self.images) or 'any image'}>"


@functools.cache
def every() -> Mapping[str, Preset]:
    """All presets by name."""
    directory = resources.files(__name__)
    names = sorted(each.name for each in directory.iterdir() if each.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): _read(name) for name in names}


def choose(image: str, name: str | None = None) -> Preset:
    """The preset called `name`, else the one of `image`, else `generic`. Raises UsageError."""
    presets = every()
    if name is None:
        return next((one for one in presets.values() if one.covers(image)), presets[GENERIC])
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(presets)}"
        raise UsageError(f"there is no preset `{name}`", hint)
    return presets[name]


def complete(flags: RunDefaults, named_run: RunDefaults | None = None) -> RunDefaults:
    """What holds of a run: flags, then the entry of mountkit.yaml, then the preset of its image. Raises UsageError.

    Secret arguments are no arguments any more but secrets; where none is given, a variable of the same name here is.
    """
    named = named_run or RunDefaults()
    preset = choose(flags.image or named.image or "", flags.preset or named.preset)
    merged = merge(flags, named_run, preset.defaults)
    arguments, given = _parted(merged.arguments or (), preset)
    known = {secret.name for secret in merged.secrets}
    secrets = [secret for secret in given if secret.name not in known]
    known |= {secret.name for secret in secrets}
    secrets += [
        replace(template, source=f"env:{template.variable}")
        for template in preset.secret_arguments.values()
        if template.name not in known and template.variable in os.environ
    ]
    arguments = tuple(_opened(word) for word in arguments)
    return replace(
        merged,
        arguments=arguments or None,
        preset=preset.name,
        secrets=(*merged.secrets, *secrets),
        environment={**_places(merged, preset), **merged.environment},
    )


def _parted(arguments: Sequence[str], preset: Preset) -> tuple[tuple[str, ...], list[Secret]]:
    """The arguments without the secret ones, and these."""
    kept: list[str] = []
    found: dict[str, Secret] = {}
    for word in arguments:
        name, separator, value = word.partition("=")
        if not separator or name not in preset.secret_arguments:
            kept.append(word)
            continue
        if not value:
            raise UsageError(f"`{name}=` has no value", f"write {name}=VALUE or {name}=env:VARIABLE")
        template = preset.secret_arguments[name]
        source = value if hidden.is_reference(value) else f"fd:{hidden.seal(value)}"
        found[template.name] = replace(template, source=source)
    return tuple(kept), list(found.values())


def _opened(word: str) -> str:
    """`word` as the user wrote it, where mountkit hid what this image takes for no secret."""
    name, separator, value = word.partition("=")
    if separator and name in hidden.ARGUMENTS and value.startswith("fd:") and hidden.is_reference(value):
        return f"{name}={hidden.open_value(value)}"
    return word


def _places(merged: RunDefaults, preset: Preset) -> dict[str, str]:
    read = merged.inputs[0].target if merged.inputs else merged.input_target or DEFAULT_INPUT
    written = merged.outputs[0].target if merged.outputs else merged.output_target or DEFAULT_OUTPUT
    named = {preset.input_variable: read, preset.output_variable: written}
    return {name: place for name, place in named.items() if name}


def _plain_name(image: str) -> str:
    """`image` without registry host, tag and digest."""
    name = image.partition("@")[0]
    host, slash, rest = name.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        name = rest
    return posixpath.join(posixpath.dirname(name), posixpath.basename(name).partition(":")[0])


def _read(file_name: str) -> Preset:
    with resources.as_file(resources.files(__name__) / file_name) as path:
        tree = yamlfile.load(str(path), {}, trusted=True)
    what = f"the preset {file_name}"
    assert tree is not None, what
    table = entries.dashed(require_table(tree, what))
    variables = _table(table, "place-variables")
    return Preset(
        name=file_name.removesuffix(".yaml"),
        words=require_word(table.entries["words"], "words").text,
        images=_texts(table.entries.get("images")),
        secret_arguments={name: _secret(name, one) for name, one in _table(table, "secret-arguments").items()},
        input_variable=require_word(variables["input"], "input").text if "input" in variables else "",
        output_variable=require_word(variables["output"], "output").text if "output" in variables else "",
        defaults=entries.run_entry(table, what, "/", {}, _OWN_KEYS),
    )


def _table(table: Table, key: str) -> Mapping[str, Any]:
    return require_table(table.entries[key], key).entries if key in table.entries else {}


def _texts(tree: Any) -> tuple[str, ...]:
    return tuple(require_word(one, "images").text for one in tree.items) if isinstance(tree, Row) else ()


def _secret(argument: str, tree: Any) -> Secret:
    table = require_table(tree, argument)
    table.only(("name", "variable"), f"the secret argument `{argument}`")
    return Secret(
        require_word(table.entries["name"], "name").text,
        "",
        require_word(table.entries["variable"], "variable").text,
    )
