"""The process of a push or a pull: as the mover, it is the one with credentials; the command line shows its progress.

It ends with the command that started it: a push goes on where it was with the next one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import sys
from dataclasses import asdict
from typing import Any

import trio

from mountkit import errors, processes
from mountkit.config import MountSettings, OutputSettings
from mountkit.errors import HostError, MountBusy, MountkitError
from mountkit.ipc import Channel, ChannelClosed, Message
from mountkit.mover.pulling import Pull
from mountkit.mover.pushing import PushedDirectory
from mountkit.mover.uploads import Uploads
from mountkit.staging.queue import UploadJournal
from mountkit.store.retry import RetryingStore

_REPORT_S = 0.2


async def _main(channel_fd: int) -> int:
    channel = Channel.from_fd(channel_fd)
    try:
        start = await channel.receive()
        try:
            result = await _run(channel, start)
        except (MountkitError, BaseExceptionGroup) as exc:
            error = errors.named(exc)
            if error is None:
                raise
            await channel.send({"error": error.to_json()})
            return error.exit_code
        await channel.send(result)
    except ChannelClosed:
        return 1
    return 0


async def _run(channel: Channel, start: Message) -> dict[str, Any]:
    settings = MountSettings.from_json(start.body["settings"])
    secrets_fd, directory_fd, *journal = start.fds
    processes.take_environment(secrets_fd)
    from mountkit.store.opening import connect  # heavy

    store, _ = await trio.to_thread.run_sync(lambda: connect(settings.source, budget_s=settings.data_budget_s))
    result: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with, channel, nursery.cancel_scope)
        if start.body["op"] == "push":
            result = await _push(channel, store, settings, directory_fd, journal[0])
        else:
            result = await _pull(channel, store, settings, start.body["target"])
        nursery.cancel_scope.cancel()
    return result


async def _end_with(channel: Channel, scope: trio.CancelScope) -> None:
    try:
        await channel.receive()
    except ChannelClosed:
        scope.cancel()


async def _push(
    channel: Channel, store: RetryingStore, settings: MountSettings, directory_fd: int, journal_fd: int
) -> dict[str, Any]:
    try:
        fcntl.flock(journal_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MountBusy("another push of this directory to this place is under way", "wait for its end") from None
    outputs = settings.outputs or OutputSettings()
    try:
        pushed = PushedDirectory(journal_fd, directory_fd, settings.source.prefix, outputs)
        scan = await trio.to_thread.run_sync(pushed.queue)
    except (OSError, sqlite3.Error) as exc:
        raise HostError(f"the directory cannot be read, or its journal not written: {exc}") from exc
    journal = UploadJournal(journal_fd)
    uploads = Uploads(journal, pushed.open_file, store, None)

    async def report(progress: dict[str, Any]) -> None:
        await channel.send({"progress": progress})

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(uploads.run)
            result = await uploads.drain(report)
            nursery.cancel_scope.cancel()
    finally:
        journal.close()
        pushed.close()
    return {**result, **asdict(scan)}


async def _pull(channel: Channel, store: RetryingStore, settings: MountSettings, target: str) -> dict[str, Any]:
    pull = Pull(store, settings.source.prefix, target)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report_pull, channel, pull)
            await trio.to_thread.run_sync(pull.run, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    finally:
        pull.stop()
    return asdict(pull.progress)


async def _report_pull(channel: Channel, pull: Pull) -> None:
    while True:
        await trio.sleep(_REPORT_S)
        await channel.send({"progress": asdict(pull.progress)})


def main() -> None:
    """Entry of the process: `python -I -m mountkit.mover.transfer CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    logging.disable(logging.CRITICAL)  # the command line shows what went wrong, in its own words
    sys.exit(trio.run(_main, int(sys.argv[1])))


if __name__ == "__main__":
    main()
