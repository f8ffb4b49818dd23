"""YAML as words with their places: the only module that knows pyyaml.

A file becomes a tree whose every word knows its line and column, so that whoever gives it a meaning can say where it
makes none. Scalars stay the text that was written: `022` is no 18 and `no` no False until an option says so. No tags,
no objects: only composed, never constructed. Variables are put in here: `${NAME}`, `${NAME:-default}`; `$$` is a `$`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mountkit.errors import UsageError

_MOST_BYTES = 1 << 20
_MOST_WORDS = 20_000
"""Aliases of aliases must not make a small file endless."""
_TAGS = {"str", "null", "bool", "int", "float", "timestamp", "seq", "map", "value"}
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}
_NULL = {"", "~", "null", "Null", "NULL"}
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|(?P<odd>\$\{)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a word stands; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def error(self, sentence: str, hint: str = "") -> UsageError:
        return UsageError(f"{self}: {sentence}", hint)


@dataclass(frozen=True, slots=True)
class Word:
    """A scalar."""

    written: str
    """As it stands in the file: where a variable may hold a secret, this is what is shown."""
    place: Place
    plain: bool = True
    """Written without quotes: only then may it be a null."""
    filled: str = field(default="", repr=False)
    problem: UsageError | None = None

    @property
    def text(self) -> str:
        """What is meant, with variables put in. Raises UsageError where one is missing.

        Only here and not in `parse`: a variable that one run needs must not keep another mount from its work.
        """
        if self.problem:
            raise self.problem
        return self.filled

    @property
    def is_null(self) -> bool:
        return self.plain and self.written in _NULL

    def truth(self, name: str) -> bool:
        """What a switch is set to. Raises UsageError."""
        if self.text.lower() in _TRUE | _FALSE:
            return self.text.lower() in _TRUE
        raise self.place.error(f"`{name}` is a switch, and `{self.text}` is neither true nor false", "write true")


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence."""

    items: tuple[Tree, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; `keys` tells where each key stands."""

    entries: dict[str, Tree]
    place: Place
    keys: dict[str, Place] = field(default_factory=dict)

    def error(self, key: str, sentence: str, hint: str = "") -> UsageError:
        return self.keys.get(key, self.place).error(sentence, hint)

    def only(self, allowed: Iterable[str], what: str) -> None:
        """Raises UsageError for the first key that is none of `allowed`, with the nearest of them."""
        known = list(allowed)
        for key in self.entries:
            if key not in known:
                raise self.error(key, f"`{key}` is no key of {what}", _nearest(key, known))


Tree = Word | Row | Table


def load(path: str, surroundings: Mapping[str, str], *, trusted: bool = False) -> Tree | None:
    """The tree in the file at `path`; None if it is empty. Raises UsageError.

    A file is refused, unless `trusted`, if it belongs to neither us nor root or if others may write to it: who writes
    it decides what runs with our rights.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        hint = "check the path" if isinstance(exc, FileNotFoundError) else "check its owner and mode"
        raise UsageError(f"cannot read {path}: {os.strerror(exc.errno or 0)}", hint) from exc
    if not trusted:
        _refuse_foreign(path, status)
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path} is larger than 1 MiB", "it is hardly a configuration")
    try:
        return parse(content.decode("utf-8"), path, surroundings)
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is no UTF-8 text (byte {exc.start})", "save it as UTF-8") from exc


def parse(text: str, name: str, surroundings: Mapping[str, str]) -> Tree | None:
    """The tree in `text`, which messages call `name`. Raises UsageError."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name, 1, 1)
        raise place.error(f"this is no YAML: {exc.problem or exc.context}", "check indentation and quotes") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise Place(name, 1, 1).error(f"this is no YAML: {exc}".splitlines()[0], "check it with an editor") from exc
    return None if root is None else _Reader(name, text.splitlines(), surroundings).tree(root, ())


def require_table(tree: Tree, what: str) -> Table:
    """`tree`, if it is a mapping. Raises UsageError."""
    if isinstance(tree, Table):
        return tree
    raise tree.place.error(f"{what} is not a list of `name: value` lines", "indent them below it")


def require_word(tree: Tree, what: str) -> Word:
    """`tree`, if it is one value. Raises UsageError."""
    if isinstance(tree, Word) and not tree.is_null:
        return tree
    raise tree.place.error(f"{what} is not one value", f"write {what}: VALUE")


def dump(tree: Tree, depth: int = 0) -> str:
    """`tree` as YAML, every word as it was written: what variables hold stays out of sight."""
    indent = "  " * depth
    if isinstance(tree, Word):
        plain = tree.plain and "\n" not in tree.written
        return f" {tree.written if plain else json.dumps(tree.written, ensure_ascii=False)}\n"
    if isinstance(tree, Row):
        lines = [f"{indent}-{dump(one, depth + 1)}" for one in tree.items]
    else:
        lines = [f"{indent}{name}:{dump(one, depth + 1)}" for name, one in tree.entries.items()]
    return "\n" + "".join(lines) if lines else " {}\n" if isinstance(tree, Table) else " []\n"


def quoted(text: str) -> str:
    """A scalar that reads back as `text`: plain where that is sure, else in quotes; `$` begins no variable."""
    plain = re.fullmatch(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+@=&?:%-]*", text) and not text.endswith(":")
    return text if plain and text not in _NULL and ": " not in text else json.dumps(text.replace("$", "$$"))


class _Reader:
    """Turns pyyaml's nodes into ours."""

    def __init__(self, name: str, lines: list[str], surroundings: Mapping[str, str]) -> None:
        self._name = name
        self._lines = lines
        self._surroundings = surroundings
        self._number = 0

    def tree(self, node: Any, above: tuple[int, ...]) -> Tree:
        place = Place(self._name, node.start_mark.line + 1, node.start_mark.column + 1)
        self._number += 1
        if id(node) in above:
            raise place.error("this alias leads back to itself", "take the alias out")
        if self._number > _MOST_WORDS or len(above) > 50:
            raise place.error("this file is too large, or its aliases multiply", "make it smaller")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise place.error(f"`{node.tag}` is a tag, and tags have no meaning here", "take it out")
        if node.id == "scalar":
            return self._word(node, place)
        if node.id == "sequence":
            return Row(tuple(self.tree(child, (*above, id(node))) for child in node.value), place)
        return self._table(node, place, (*above, id(node)))

    def _table(self, node: Any, place: Place, above: tuple[int, ...]) -> Table:
        table = Table({}, place)
        merged: list[Table] = []
        for key, value in node.value:
            where = Place(self._name, key.start_mark.line + 1, key.start_mark.column + 1)
            if key.id != "scalar":
                raise where.error("a key must be one word", "quote it")
            if key.value == "<<":
                found = self.tree(value, above)
                merged += [require_table(t, "<<") for t in (found.items if isinstance(found, Row) else (found,))]
                continue
            if key.value in table.entries:
                raise where.error(
                    f"`{key.value}` stands here twice, first in line {table.keys[key.value].line}", "keep one of them"
                )
            table.entries[key.value] = self.tree(value, above)
            table.keys[key.value] = where
        for other in merged:
            for name, tree in other.entries.items():
                if name not in table.entries:
                    table.entries[name], table.keys[name] = tree, other.keys[name]
        return table

    def _word(self, node: Any, place: Place) -> Word:
        text: str = node.value

        def put_in(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            here = self._inside(node, place, match[0])
            if match["odd"]:
                raise here.error("`${` does not begin a variable", "write ${NAME} or ${NAME:-default}; `$$` is a `$`")
            name, default = match["name"], match["default"]
            value = self._surroundings.get(name, "")
            if default is not None:
                return value or default[2:]
            if name not in self._surroundings:
                raise here.error(f"the variable {name} is not set", f"set it, or write ${{{name}:-default}}")
            return value

        try:
            return Word(text, place, node.style is None, filled=_VARIABLE.sub(put_in, text))
        except UsageError as exc:
            return Word(text, place, node.style is None, problem=exc)

    def _inside(self, node: Any, place: Place, wanted: str) -> Place:
        """The place of `wanted` within a scalar, so that the column points at the variable itself."""
        for number in range(node.start_mark.line, min(node.end_mark.line + 1, len(self._lines))):
            start = node.start_mark.column if number == node.start_mark.line else 0
            column = self._lines[number].find(wanted, start)
            if column >= 0:
                return replace(place, line=number + 1, column=column + 1)
        return place


def _refuse_foreign(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.getuid()):
        raise UsageError(
            f"{path} belongs to user {status.st_uid}, neither to you nor to root", "take it over, if you trust it"
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise UsageError(
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod go-w {path}"
        )


def _nearest(key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key.replace("_", "-"), allowed, n=1)
    return f"did you mean `{near[0]}`?" if near else f"it may be one of: {', '.join(sorted(allowed))}"
