"""`mountkit help` and `mountkit completion`: pages to read, and what a shell needs to complete our words."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from mountkit.errors import UsageError

_VARIABLE = "_MOUNTKIT_COMPLETE"


# ---- help ----------------------------------------------------------------------------------------------------
def _pages() -> dict[str, Path]:
    """The pages of docs/ by their names: beside this package in a wheel, at the top of a checkout."""
    package = Path(__file__).parents[1]
    carried = package / "docs"
    directory = carried if carried.is_dir() else package.parent / "docs"
    return {path.stem: path for path in sorted(directory.glob("*.md"))}


def _title(page: Path) -> str:
    with page.open(encoding="utf-8") as lines:
        return next(lines).lstrip("# ").strip()


def _complete_topics(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    words = {*_pages(), *_root(context).commands}
    return [CompletionItem(word) for word in sorted(words) if word.startswith(typed)]


def _root(context: click.Context) -> click.Group:
    found = context.find_root().command
    assert isinstance(found, click.Group)
    return found


@click.command("help")
@click.argument("topic", nargs=-1, shell_complete=_complete_topics)
@click.pass_context
def help_(context: click.Context, topic: tuple[str, ...]) -> None:
    """Show a page of the manual, or the help of a command; without TOPIC, which there are."""
    pages = _pages()
    if not topic:
        click.echo(context.find_root().get_help())
        click.echo("\nPages (mountkit help PAGE):")
        width = max(map(len, pages))
        for name, page in pages.items():
            click.echo(f"  {name:<{width}}  {_title(page)}")
    elif len(topic) == 1 and topic[0] in pages:
        _show(pages[topic[0]].read_text(encoding="utf-8"))
    else:
        click.echo(_command_help(context.find_root(), topic, pages))


def _command_help(context: click.Context, words: tuple[str, ...], pages: dict[str, Path]) -> str:
    command: click.Command = context.command
    for word in words:
        found = command.get_command(context, word) if isinstance(command, click.Group) else None
        if found is None:
            raise UsageError(
                f"there is no command and no page `{' '.join(words)}`", f"the pages are: {', '.join(pages)}"
            )
        command, context = found, click.Context(found, info_name=word, parent=context)
    return command.get_help(context)


def _show(text: str) -> None:
    """As it is where a program reads it; set, and a screen at a time, where a person does."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(110, Console().width))
    with console.pager(styles=True):
        console.print(Markdown(text))


# ---- completion ----------------------------------------------------------------------------------------------
@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what has SHELL complete the commands, options and mounts of mountkit.

    \b
    mountkit completion bash > ~/.local/share/bash-completion/completions/mountkit
    mountkit completion zsh > DIR/_mountkit        # DIR: one of $fpath
    mountkit completion fish > ~/.config/fish/completions/mountkit.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(_root(context), {}, "mountkit", _VARIABLE).source())
