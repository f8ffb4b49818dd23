"""The mover process: takes the state directory's lock, checks the bucket, then serves requests until nobody needs it.

It is the only process with credentials: they come in a sealed memfd, and the process is not dumpable, so neither
/proc nor ptrace shows them to another process of the same user. It ends when its last keeper is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import sys
import time
from typing import Any

import trio

from mountkit import errors, ipc, logs, processes
from mountkit.cache.policy import Limits
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.config import MountSettings
from mountkit.errors import MountError, MountkitError
from mountkit.ipc import Channel, ChannelClosed, Message, Progress
from mountkit.mover.housekeeper import Housekeeper
from mountkit.mover.service import Service

log = logging.getLogger(__name__)
_LOCK_S = 5.0
_GRACE_S = 3.0
"""How long the mover waits for a new keeper before it ends: the last one's servers may just be starting it."""
_GOODBYE_S = 0.05
"""The same after a goodbye: just long enough to answer it."""


class _Peers:
    """Who is connected and keeps the mover alive."""

    def __init__(self) -> None:
        self.count = 0
        self.somebody = trio.Event()
        self.nobody = trio.Event()

    def come(self) -> None:
        if not self.count:
            self.nobody = trio.Event()
        self.count += 1
        self.somebody.set()

    def go(self) -> None:
        self.count -= 1
        if not self.count:
            self.somebody = trio.Event()
            self.nobody.set()


async def _main(channel_fd: int) -> int:
    channel = Channel.from_fd(channel_fd)
    try:
        start = await channel.receive()
    except ChannelClosed:
        return 1
    try:
        await _serve(channel, start)
    except (MountkitError, BaseExceptionGroup) as exc:
        error = errors.named(exc)
        if error is None:
            raise
        log.error("%s", error)
        with contextlib.suppress(ChannelClosed):
            await channel.send({"error": error.to_json()})
        return error.exit_code
    return 0


async def _serve(channel: Channel, start: Message) -> None:
    settings = MountSettings.from_json(start.body["settings"])
    state_fd, *rest = start.fds
    secrets_fd = rest[0] if rest else None
    logs.to_state_directory(state_fd)
    take_environment(secrets_fd)
    socket_path = start.body["socket"]
    if not await _take_lock(state_fd, socket_path):
        await channel.send({"pid": os.getpid(), "taken": True})
        return
    from mountkit.store.opening import connect  # heavy: after the lock, so that a second mover ends quickly

    store, region = await trio.to_thread.run_sync(
        lambda: connect(
            settings.source,
            check=start.body["check"],
            budget_s=settings.data_budget_s,
            metadata_budget_s=settings.metadata_budget_s,
            region=start.body["region"],
        )
    )
    limits = Limits(settings.cache_size_bytes, settings.cache_free_share)
    cache = CacheWriter.open(state_fd, limits, secrets.token_bytes(16))
    catalog = Catalog.open(state_fd, settings.source.prefix)
    for warning in (*cache.warnings, *catalog.warnings):
        log.warning("%s", warning)
    service = Service(settings, catalog, cache, store, region, state_fd)
    peers = _Peers()
    try:
        async with ipc.listening(socket_path) as listener, trio.open_nursery() as nursery:
            await nursery.start(service.lister.run)
            await nursery.start(service.fetcher.run)
            nursery.start_soon(service.outputs.run)
            nursery.start_soon(Housekeeper(settings, catalog, cache, service.fetcher).run)
            nursery.start_soon(ipc.serve, listener, lambda peer: _answer(peer, service, peers))
            await channel.send({"pid": os.getpid(), "region": region})
            channel.close()
            nursery.start_soon(service.watch_files)
            nursery.start_soon(_end_when_lost, service)
            nursery.start_soon(_end_when_retired, service, nursery.cancel_scope)
            await _until_nobody_needs_us(peers, service)
            nursery.cancel_scope.cancel()
    finally:
        cache.close()
        catalog.close()
        log.info("the mover ends")


async def _answer(channel: Channel, service: Service, peers: _Peers) -> None:
    """One connection; those of keepers and servers keep us alive."""
    counted = False

    async def handle(request: Message, progress: Progress) -> Message | dict[str, Any]:
        nonlocal counted
        operation = request.body.get("op")
        if operation == "hello" and not counted:
            counted = True
            service.goodbye = trio.Event()
            peers.come()
            return {}
        if operation == "goodbye":
            if counted:
                counted = False
                if peers.count == 1:  # the last one leaves in order: no need to wait for another
                    service.goodbye.set()
                peers.go()
            return {"last": not peers.count}
        if operation == "retire":
            service.retired.set()
            return {}
        return await service.handle(request, progress)

    try:
        await ipc.answer_requests(channel, handle)
    finally:
        if counted:
            peers.go()


async def _end_when_lost(service: Service) -> None:
    await service.lost.wait()
    raise MountError("catalog or cache were deleted or damaged; the next mover begins them anew")


async def _end_when_retired(service: Service, scope: trio.CancelScope) -> None:
    await service.retired.wait()
    scope.cancel()


async def _until_nobody_needs_us(peers: _Peers, service: Service) -> None:
    with trio.move_on_after(30.0):
        await peers.somebody.wait()
    while True:
        if peers.count:
            await peers.nobody.wait()
        grace = _GOODBYE_S if service.goodbye.is_set() else _GRACE_S
        with trio.move_on_after(grace):
            await peers.somebody.wait()
        if not peers.count:
            return


async def _take_lock(state_fd: int, socket_path: str) -> bool:
    """The state directory's lock, held until we end. False if another mover has it and answers."""
    fd = os.open("mover.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=state_fd)
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if await ipc.answers(socket_path):
                return False
            if time.monotonic() > deadline:
                raise MountError(
                    "another mover holds this cache and does not answer",
                    "see `mountkit status`, or use another --cache",
                ) from None
            await trio.sleep(0.05)
        else:
            return True


def take_environment(secrets_fd: int | None) -> None:
    """Puts the caller's store environment in the place of ours."""
    if secrets_fd is None:
        return
    with open(f"/proc/self/fd/{secrets_fd}", encoding="utf-8", errors="surrogateescape") as file:
        os.environ.update(json.load(file))


def main() -> None:
    """Entry of the process: `python -I -m mountkit.mover.process CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    logs.basic()
    sys.exit(trio.run(_main, int(sys.argv[1])))


if __name__ == "__main__":
    main()
