"""mountkit.yaml: named mounts and named runs, found upward from the current directory.

    mounts:
      train: {source: s3://data/train, directory: /mnt/train, ttl: indefinite}
    runs:
      sample: {image: lightly/sampling, inputs: [train], outputs: [./out], args: [n_samples=100]}

An entry is read when it is asked for: a variable that one run wants does not keep another mount from its work. Only
`check` reads everything. Each error names file, line and column.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mountkit import mountinfo, yamlfile
from mountkit.errors import UsageError
from mountkit.run import entries
from mountkit.run.plan import Input, RunDefaults
from mountkit.sources import parse_source
from mountkit.yamlfile import Place, Table, Word, require_table, require_word

FILE_NAME = "mountkit.yaml"
FILE_VARIABLE = "MOUNTKIT_CONFIG"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")
"""Names no path and no image with a tag can be mistaken for."""
MOUNT_KEYS = {
    "source": "Bucket, bucket/prefix or s3://bucket/prefix.",
    "directory": "Directory it is mounted at; relative to this file.",
}


@dataclass(frozen=True, slots=True)
class NamedMount:
    """An entry of `mounts:`."""

    name: str
    source: str
    directory: str
    options: Mapping[str, str | bool]
    """By the names of `config.OPTIONS`, as fields; each has passed its parser."""
    place: Place


@dataclass(frozen=True, slots=True)
class Project:
    """One mountkit.yaml."""

    path: str
    mounts: Table
    runs: Table
    surroundings: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Project {self.path}: {len(self.mounts.entries)} mounts, {len(self.runs.entries)} runs>"

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)

    def mount(self, name: str) -> NamedMount:
        """The mount `name`. Raises UsageError if there is none, or if its entry makes no sense."""
        if name not in self.mounts.entries:
            raise UsageError(f"{self.path} has no mount `{name}`", _known(name, self.mounts, "mounts"))
        what = f"the mount `{name}`"
        table = entries.dashed(require_table(self.mounts.entries[name], what))
        options = entries.mount_options(table, what, self.directory, tuple(MOUNT_KEYS))
        for key in MOUNT_KEYS:
            if key not in table.entries:
                raise self.mounts.error(name, f"{what} has no {key}", f"write {key}: …")
        source = require_word(table.entries["source"], "source")
        text = source.text
        entries.with_place(source, lambda: parse_source(text))
        directory = entries.absolute(require_word(table.entries["directory"], "directory").text, self.directory)
        return NamedMount(name, text, directory, options, self.mounts.keys[name])

    def run(self, name: str) -> RunDefaults:
        """The run `name`, its inputs resolved. Raises UsageError."""
        if name not in self.runs.entries:
            raise UsageError(f"{self.path} has no run `{name}`", _known(name, self.runs, "runs"))
        what = f"the run `{name}`"
        table = require_table(self.runs.entries[name], what)
        found = entries.run_entry(table, what, self.directory, self.surroundings)
        if not found.image:
            raise self.runs.error(name, f"{what} has no image", "write image: NAME")
        return self.resolve(replace(found, run_name=found.run_name or name))

    def resolve(self, wanted: RunDefaults) -> RunDefaults:
        """`wanted`, where an input that has the name of a mount of this file is that mount."""
        return replace(wanted, inputs=tuple(self._input(one) for one in wanted.inputs))

    def _input(self, wanted: Input) -> Input:
        if wanted.is_directory or wanted.source not in self.mounts.entries:
            return wanted
        named = self.mount(wanted.source)
        directory = mountinfo.resolve(named.directory)
        if any(point.directory == directory for point in mountinfo.ours()):
            return Input(directory, wanted.target, is_directory=True)
        return Input(named.source, wanted.target, is_directory=False, options={**named.options, **wanted.options})

    def all_mounts(self) -> list[NamedMount]:
        """Every mount. Raises UsageError, also where two would take one place."""
        found = [self.mount(name) for name in self.mounts.entries]
        for number, one in enumerate(found):
            for other in found[:number]:
                if _nested(one.directory, other.directory) or _nested(other.directory, one.directory):
                    raise one.place.error(
                        f"the mounts `{other.name}` and `{one.name}` would take one place: {one.directory}",
                        "give each a directory of its own, none inside another",
                    )
        return found

    def check(self) -> None:
        """Returns if every entry makes sense. Raises UsageError for the first that does not."""
        self.all_mounts()
        for kind, table in (("mount", self.mounts), ("run", self.runs)):
            for name in table.entries:
                if not _NAME.fullmatch(name):
                    raise table.error(
                        name, f"`{name}` is no name of a {kind}", "two or more letters, digits, `.`, `_` or `-`"
                    )
        for name in self.runs.entries:
            self.run(name)


def is_name(word: str) -> bool:
    """Whether a mount or a run may be called so."""
    return bool(_NAME.fullmatch(word))


def candidates(start: str, surroundings: Mapping[str, str]) -> Iterator[str]:
    """Where mountkit.yaml may lie, best first."""
    directory = os.path.abspath(start)
    while True:
        yield os.path.join(directory, FILE_NAME)
        above = os.path.dirname(directory)
        if above == directory:
            break
        directory = above
    home = surroundings.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    yield os.path.join(home, "mountkit", FILE_NAME)
    yield os.path.join("/etc/mountkit", FILE_NAME)


def find_file(start: str = ".", surroundings: Mapping[str, str] | None = None) -> str:
    """The mountkit.yaml that holds here; "" if there is none. $MOUNTKIT_CONFIG names the one that holds everywhere."""
    around = os.environ if surroundings is None else surroundings
    if around.get(FILE_VARIABLE):
        return os.path.abspath(around[FILE_VARIABLE])
    return next((path for path in candidates(start, around) if os.path.lexists(path)), "")


def load(path: str, surroundings: Mapping[str, str] | None = None) -> Project:
    """The project in the file at `path`. Raises UsageError."""
    around = os.environ if surroundings is None else surroundings
    path = os.path.abspath(path)
    tree = yamlfile.load(path, around)
    empty = Table({}, Place(path, 1, 1))
    if tree is None:
        return Project(path, empty, empty, around)
    root = require_table(tree, FILE_NAME)
    named = {key for key in root.entries if key.startswith("x-")}  # a place for anchors
    root.only(("mounts", "runs", *named), FILE_NAME)
    mounts, runs = (_section(root, key, empty) for key in ("mounts", "runs"))
    return Project(path, mounts, runs, around)


def find(start: str = ".") -> Project | None:
    """The project that holds here, if any. Raises UsageError."""
    path = find_file(start)
    return load(path) if path else None


def required() -> Project:
    """The project that holds here. Raises UsageError if there is none."""
    found = find()
    if found is None:
        raise UsageError(
            f"there is no {FILE_NAME} here, above here, in ~/.config/mountkit or in /etc/mountkit",
            "`mountkit config init` writes one",
        )
    return found


def find_mount(word: str) -> NamedMount | None:
    """The mount that `word` names in the project that holds here, if both exist. Raises UsageError."""
    project = find() if _NAME.fullmatch(word) else None
    return project.mount(word) if project and word in project.mounts.entries else None


def readable_mounts() -> list[NamedMount]:
    """The mounts of the project that holds here, without those whose entries are wrong or lack a variable."""
    found: list[NamedMount] = []
    with contextlib.suppress(UsageError):
        if (project := find()) is not None:
            for name in project.mounts.entries:
                with contextlib.suppress(UsageError):
                    found.append(project.mount(name))
    return found


def find_run(word: str) -> RunDefaults | None:
    """The run that `word` names in the project that holds here; None if it is an image. Raises UsageError.

    Also for a word that is nearly a run's name: else a typing error would fetch somebody's image and run it.
    """
    project = find() if _NAME.fullmatch(word) else None
    if project is None:
        return None
    near = difflib.get_close_matches(word, project.runs.entries, n=1, cutoff=0.75)
    if near and word not in project.runs.entries:
        hint = f"did you mean `{near[0]}`? The image of that name is `{word}:latest`"
        raise UsageError(f"{project.path} has no run `{word}`", hint)
    return project.run(word) if near else None


def resolve(wanted: RunDefaults) -> RunDefaults:
    """`wanted`, its inputs looked up in the project that holds here. Raises UsageError."""
    if not any(_NAME.fullmatch(one.source) for one in wanted.inputs if not one.is_directory):
        return wanted
    project = find()
    return project.resolve(wanted) if project else wanted


def chosen_mounts(name: str | None, *, every: bool) -> list[NamedMount]:
    """The mounts that `NAME` or `--all` mean. Raises UsageError."""
    if every == (name is not None):
        raise UsageError("say either one mount or --all", "`mountkit mount SOURCE DIRECTORY`, `NAME` or `--all`")
    project = required()
    if every and not project.mounts.entries:
        raise UsageError(f"{project.path} has no mounts", "add some below `mounts:`")
    return project.all_mounts() if every else [project.mount(name or "")]


def _section(root: Table, key: str, empty: Table) -> Table:
    tree = root.entries.get(key, empty)
    return empty if isinstance(tree, Word) and tree.is_null else require_table(tree, key)


def _nested(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def _known(name: str, table: Table, kind: str) -> str:
    near = difflib.get_close_matches(name, table.entries, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"its {kind}: {', '.join(table.entries)}" if table.entries else f"it has no {kind}"
