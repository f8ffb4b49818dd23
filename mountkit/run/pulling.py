"""Fetching an image: a bar for each layer at a terminal, elsewhere a line for each that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mountkit import notes
from mountkit.errors import EngineError, ImageMissing
from mountkit.run.engine import Engine, Image, PullProgress
from mountkit.run.plan import Pull

_THERE = ("Pull complete", "Already exists")


def required_image(
    engine: Engine, name: str, *, pull: Pull = "missing", platform: str = "", say: Callable[[str], None]
) -> Image:
    """The image for `platform`, fetched if need be. Raises ImageMissing, EngineError."""
    here = engine.image(name)
    if here is not None and pull != "always" and _is_for(platform, here):
        return here
    why = "is not on this machine" if here is None else f"on this machine is for {here.platform}"
    if pull == "never":
        raise ImageMissing(f"the image `{name}` {why}, and --pull never forbids to fetch it", "drop --pull never")
    say(f"fetching the image {name}" + (f" for {platform}" if platform else ""))
    try:
        show(engine.pull(name, platform), say)
    except ImageMissing as exc:
        if here is None:
            exc.sentence = exc.sentence.replace("cannot be pulled", f"{why} and cannot be pulled", 1)
        elif not _is_for(platform, here):
            exc.hint = f"the one {why}: drop --platform to run it"
        else:
            exc.hint = "drop --pull always to run the one that is on this machine"
        raise
    found = engine.image(name)
    if found is None:
        raise EngineError(f"the engine fetched `{name}` and does not have it", "fetch it with the engine's own tool")
    return found


def _is_for(platform: str, image: Image) -> bool:
    return not platform or not image.platform or platform.split("/")[:2] == image.platform.split("/")[:2]


def show(updates: Iterable[PullProgress], say: Callable[[str], None]) -> None:
    """Follows `updates` to their end; raises what they raise."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = notes.console()
    if not console.is_terminal:
        _tell(updates, say)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
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
            elif update.status in _THERE:
                total = progress.tasks[bars[update.layer]].total or 1
                progress.update(bar, description=words, total=total, completed=total)
            else:
                progress.update(bar, description=words)


def _tell(updates: Iterable[PullProgress], say: Callable[[str], None]) -> None:
    from mountkit.report import size

    sizes: dict[str, int] = {}
    for update in updates:
        sizes[update.layer] = update.total_bytes or sizes.get(update.layer, 0)
        if update.layer and update.status in _THERE:
            known = f", {size(sizes[update.layer])}" if sizes[update.layer] else ""
            say(f"layer {update.layer}: {update.status.lower()}{known}")
