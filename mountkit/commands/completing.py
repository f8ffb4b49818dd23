"""What a shell may offer for an argument or an option: directories, files, mounts of mountkit.yaml, choices."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from mountkit.config import OPTIONS, Choice

_MOUNTS = {"source", "subject", "which", "names", "directory"}
_KINDS = {
    "DIR": "dir",
    "FILE": "file",
    "directory": "dir",
    "which": "dir",
    "subject": "dir",
    "path": "file",
    "file": "file",
}
"""By metavar or name: `dir` and `file` have the shell look for them itself."""
_CHOICES = {option.field: option.parse.allowed for option in OPTIONS if isinstance(option.parse, Choice)}


class _Text(click.types.StringParamType):
    """A text a shell knows words for."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 click gives it
        param: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        name = param.name or ""
        kind = _KINDS.get(str(param.metavar), _KINDS.get(name, ""))
        items = [CompletionItem(incomplete, type=kind)] if kind else []
        words = list(_CHOICES.get(name, ()))
        if name in _MOUNTS and isinstance(param, click.Argument):
            words += _names_of_mounts()
        return items + [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _names_of_mounts() -> list[str]:
    from mountkit import project

    return [one.name for one in project.readable_mounts()]


def add_to(root: click.Group) -> None:
    """Has the texts of every command below `root` completed."""
    for command in _below(root):
        for parameter in command.params:
            if type(parameter.type) is click.types.StringParamType and parameter._custom_shell_complete is None:
                parameter.type = _Text()


def _below(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _below(command)
