"""Fetching an image, with a bar for each layer where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mountkit import notes
from mountkit.errors import EngineError, ImageMissing
from mountkit.run.engine import Engine, Image, PullProgress
from mountkit.run.plan import Pull


def required_image(
    engine: Engine, name: str, *, pull: Pull = "missing", platform: str = "", say: Callable[[str], None]
) -> Image:
    """The image, fetched if need be. Raises ImageMissing, EngineError."""
    found = None if pull == "always" else engine.image(name)
    if found is not None:
        return found
    if pull == "never":
        raise ImageMissing(
            f"the image `{name}` is not on this machine, and --pull never forbids to fetch it", "drop --pull never"
        )
    say(f"fetching the image {name}")
    show(engine.pull(name, platform))
    found = engine.image(name)
    if found is None:
        raise EngineError(f"the engine fetched `{name}` and does not have it", "fetch it with the engine's own tool")
    return found


def show(updates: Iterable[PullProgress]) -> None:
    """Follows `updates` to their end; raises what they raise."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = notes.console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, int] = {}
        for update in updates:
            if not update.layer:
                continue
            if update.layer not in bars:
                bars[update.layer] = progress.add_task(update.layer, total=None)
            bar = progress.tasks[bars[update.layer]].id
            words = f"{update.layer} {update.status.lower():<18}"
            if update.total_bytes:
                progress.update(bar, description=words, total=update.total_bytes, completed=update.done_bytes)
            elif update.status in ("Pull complete", "Already exists"):
                total = progress.tasks[bars[update.layer]].total or 1
                progress.update(bar, description=words, total=total, completed=total)
            else:
                progress.update(bar, description=words)
