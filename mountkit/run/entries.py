"""Runs as files write them: an entry below `runs:` of mountkit.yaml, or a preset, becomes `RunDefaults`.

The keys are the options of `mountkit run` (`options.RUN_OPTIONS`), in the plural where they may be given several times;
every value goes through the very parser of its option. Paths are relative to the file, not to who reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mountkit.config import OPTIONS as MOUNT_OPTIONS
from mountkit.config import Option, option_values
from mountkit.errors import UsageError
from mountkit.run.options import RUN_OPTIONS, RunOption, wanted
from mountkit.run.plan import RunDefaults
from mountkit.yamlfile import Row, Table, Tree, Word, require_table, require_word

_PLURALS = {"input", "output", "volume", "secret", "ulimit", "label"}
OPTION_KEYS: dict[str, RunOption] = {
    f"{option.name}s" if option.name in _PLURALS else option.name: option for option in RUN_OPTIONS
}
MOUNT_KEYS: dict[str, Option] = {option.name: option for option in MOUNT_OPTIONS}
OWN_KEYS = {
    "image": "Image of the container.",
    "args": "Words after the image.",
    "tty": "Give the container a terminal for its output.",
    "input-target": "Where an input goes that names no place of its own.",
    "output-target": "Where an output goes that names no place of its own.",
    "gpus-optional": "Where there is no GPU runtime: a note instead of a failure.",
    "mount": "Options of the mounts this run makes.",
}
_NAMED_BY_KEY = {"env": "=", "secrets": "=", "ulimits": "=", "labels": "="}


def run_entry(
    table: Table,
    what: str,
    directory: str,
    surroundings: Mapping[str, str],
    also: tuple[str, ...] = (),
) -> RunDefaults:
    """What the entry `table` says. `also` are keys of the caller's own. Raises UsageError with line and column."""
    table = dashed(table)
    table.only((*OWN_KEYS, *OPTION_KEYS, *also), what)
    found: dict[str, Any] = {}
    for key, tree in table.entries.items():
        if key in also or (isinstance(tree, Word) and tree.is_null):
            continue
        if key in OPTION_KEYS:
            for part in _option(key, tree, directory, surroundings):
                _add(found, part)
        else:
            found |= _own(key, tree, directory)
    return RunDefaults(**found)


def mount_options(table: Table, what: str, directory: str, also: tuple[str, ...] = ()) -> dict[str, str | bool]:
    """The mount options of `table` by name, each checked by its own parser; paths made absolute. Raises UsageError."""
    table = dashed(table)
    table.only((*MOUNT_KEYS, *also), what)
    found: dict[str, str | bool] = {}
    for key, tree in table.entries.items():
        if key in also or (isinstance(tree, Word) and tree.is_null):
            continue
        word, option = require_word(tree, key), MOUNT_KEYS[key]
        if option.parse is None:
            found[option.field] = word.truth(key)
            continue
        text = absolute(word.text, directory) if option.metavar in ("DIR", "FILE") else word.text
        with_place(word, lambda text=text, key=key: option_values({key: text}))  # type: ignore[misc]
        found[option.field] = text
    return found


def with_place(tree: Tree, action: Callable[[], Any]) -> Any:
    """What `action` returns; a UsageError of it gets the place of `tree` in front."""
    try:
        return action()
    except UsageError as exc:
        raise tree.place.error(exc.sentence.removeprefix("--"), exc.hint.replace("--", "")) from None


def dashed(table: Table) -> Table:
    """`cache_size` means `cache-size`, as on the command line. Raises UsageError where both stand."""
    entries: dict[str, Tree] = {}
    keys = {}
    for key, tree in table.entries.items():
        name = key.replace("_", "-")
        if name in entries:
            raise table.error(key, f"`{name}` stands here twice", "keep one of them")
        entries[name], keys[name] = tree, table.keys[key]
    return Table(entries, table.place, keys)


def absolute(path: str, directory: str) -> str:
    """`path` as the file in `directory` means it."""
    return os.path.normpath(os.path.join(directory, os.path.expanduser(path)))


def _own(key: str, tree: Tree, directory: str) -> dict[str, Any]:
    if key == "args":
        rows = tree.items if isinstance(tree, Row) else (tree,)
        return {"arguments": tuple(require_word(one, "args").text for one in rows)}
    if key == "mount":
        return {"mount_options": mount_options(require_table(tree, key), "mount", directory)}
    word = require_word(tree, key)
    if key in ("tty", "gpus-optional"):
        return {key.replace("-", "_"): word.truth(key)}
    if key.endswith("-target") and not word.text.startswith("/"):
        raise word.place.error(f"`{word.text}` is no absolute path in the container", "write it like /data/input")
    return {key.replace("-", "_"): word.text}


def _option(key: str, tree: Tree, directory: str, surroundings: Mapping[str, str]) -> Iterator[RunDefaults]:
    option = OPTION_KEYS[key]
    if option.parse is None:
        yield wanted({option.name: require_word(tree, key).truth(key)})
        return
    if not option.multiple:
        text = require_word(tree, key).text
        yield with_place(tree, lambda: wanted({option.name: text}, surroundings=surroundings))
        return
    for one, text, options in _texts(key, tree, directory):
        part = with_place(one, lambda text=text: wanted({option.name: [text]}, surroundings=surroundings))  # type: ignore[misc]
        if options:
            part = replace(part, inputs=tuple(replace(i, options=options) for i in part.inputs))
        yield part


def _texts(key: str, tree: Tree, directory: str) -> Iterator[tuple[Tree, str, dict[str, str | bool]]]:
    """What a key of several values holds, each as its option writes it."""
    if key in _NAMED_BY_KEY and isinstance(tree, Table):
        for name, value in tree.entries.items():
            yield value, _named(key, name, value, directory), {}
        return
    for one in tree.items if isinstance(tree, Row) else (tree,):
        if isinstance(one, Table) and key in ("inputs", "outputs", "volumes"):
            yield _placed(key, dashed(one), directory)
        else:
            yield one, _path(key, require_word(one, key).text, directory), {}


def _named(key: str, name: str, value: Tree, directory: str) -> str:
    if key == "secrets" and isinstance(value, Table):
        value.only(("from", "variable"), f"the secret `{name}`")
        if "from" not in value.entries:
            raise value.place.error(f"the secret `{name}` comes from nowhere", "write from: FILE or from: env:NAME")
        if "variable" in value.entries:
            name = f"{name}:{require_word(value.entries['variable'], 'variable').text}"
        return _path(key, f"{name}={require_word(value.entries['from'], 'from').text}", directory)
    if key == "env" and isinstance(value, Word) and value.is_null:
        return name
    if key == "labels" and isinstance(value, Word) and value.is_null:
        return f"{name}="
    if not isinstance(value, Word):
        raise value.place.error(f"`{name}` is not one value", f"write {name}: VALUE")
    return _path(key, f"{name}={value.text}", directory)


def _placed(key: str, table: Table, directory: str) -> tuple[Tree, str, dict[str, str | bool]]:
    """The long form: `source:`, `target:`, for inputs also options of their mount."""
    own = ("source", "target", *(("read-only",) if key == "volumes" else ()))
    options: dict[str, str | bool] = {}
    if key == "inputs":
        options = mount_options(table, "an input", directory, own)
    else:
        table.only(own, f"one of the {key}")
    if "source" not in table.entries:
        raise table.place.error(f"one of the {key} has no source", "write source: BUCKET or source: ./DIRECTORY")
    text = _path(key, require_word(table.entries["source"], "source").text, directory)
    if "target" in table.entries:
        text += ":" + require_word(table.entries["target"], "target").text
    if "read-only" in table.entries and require_word(table.entries["read-only"], "read-only").truth("read-only"):
        text += ":ro"
    return table, text, options


def _path(key: str, text: str, directory: str) -> str:
    """`text` with a path of this host that is relative made absolute."""
    if key in ("inputs", "outputs", "volumes"):
        if text in (".", "..") or text.startswith(("./", "../", ".:/", "..:/")):
            source, colon, target = text.partition(":/")
            return absolute(source, directory) + (f":/{target}" if colon else "")
        if key == "outputs" and text[:1] not in "/~" and "://" not in text:
            return os.path.join(directory, text)
    if key == "env-file":
        return absolute(text, directory)
    if key == "secrets":
        name, separator, source = text.partition("=")
        if separator and source and not source.startswith(("env:", "fd:")):
            return f"{name}={absolute(source, directory)}"
    return text


def _add(found: dict[str, Any], part: RunDefaults) -> None:
    for name in RunDefaults.__dataclass_fields__:
        value = getattr(part, name)
        if value in (None, (), {}):
            continue
        if isinstance(value, tuple):
            found[name] = (*found.get(name, ()), *value)
        elif isinstance(value, Mapping):
            found[name] = {**found.get(name, {}), **value}
        else:
            found[name] = value
