"""The mover process: takes the state directory's lock, checks the bucket, then serves requests until nobody needs it.

It is the only process with credentials: they come in a sealed memfd, and the process is not dumpable, so neither
/proc nor ptrace shows them to another process of the same user. It ends when its last keeper is gone, and when its
catalog or cache can no longer be used: the next mover begins them anew, or has the catalog in memory (`stand_in`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from mountkit import about, errors, ipc, logs, places, processes, tracefile
from mountkit.cache.faults import CacheBroken, CacheFull
from mountkit.cache.policy import Limits
from mountkit.cache.writer import CacheWriter
from mountkit.catalog import schema
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogUnavailable
from mountkit.config import MountSettings
from mountkit.errors import MountError, MountkitError
from mountkit.ipc import Channel, ChannelClosed, Message, Progress
from mountkit.mover.housekeeper import Housekeeper
from mountkit.mover.service import Service

log = logging.getLogger(__name__)
_LOCK, _LOCK_S = "mover.lock", 5.0
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
    except (MountkitError, CatalogUnavailable, BaseExceptionGroup) as exc:
        if unusable := _unusable(exc):
            log.warning("%s", unusable)
            with contextlib.suppress(ChannelClosed):
                await channel.send({"unusable": str(unusable)})
            return 1
        error = errors.named(exc)
        if error is None:
            raise
        log.error("%s", error)
        with contextlib.suppress(ChannelClosed):
            await channel.send({"error": error.to_json()})
        return error.exit_code
    return 0


def _unusable(raised: BaseException) -> Exception | None:
    """The trouble with catalog or cache that `raised` is, or holds among other errors."""
    kinds = (CatalogUnavailable, CacheFull, CacheBroken)
    if isinstance(raised, kinds):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        return next(filter(None, map(_unusable, raised.exceptions)), None)
    return None


async def _serve(channel: Channel, start: Message) -> None:
    settings = MountSettings.from_json(start.body["settings"])
    state_fd, catalog_fd, *rest = start.fds
    secrets_fd = rest[0] if rest else None
    stand_in = str(start.body["stand_in"])
    logs.to_state_directory(catalog_fd)
    processes.take_environment(secrets_fd)
    socket_path = start.body["socket"]
    if not await _take_lock(_lock_files(state_fd, catalog_fd, stand_in=bool(stand_in)), socket_path):
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
    about.write(state_fd, settings)
    limits = Limits(settings.cache_size_bytes, settings.cache_free_share)
    cache = _open_cache(state_fd, catalog_fd, limits, stand_in=bool(stand_in))
    if stand_in:
        if schema.identity(catalog_fd) is None:  # else an earlier mover's, which knows more
            schema.carry_over(state_fd, catalog_fd)
    else:
        _bring_catalog_home(settings.state_name, state_fd)
    catalog = Catalog.open(catalog_fd, settings.source.prefix)
    for warning in (*cache.warnings, *catalog.warnings):
        log.warning("%s", warning)
    service = Service(settings, catalog, cache, store, region, state_fd)
    housekeeper = Housekeeper(
        settings, catalog, cache, service.fetcher, traced_since=lambda: tracefile.oldest(state_fd)
    )
    peers = _Peers()
    try:
        async with ipc.listening(socket_path) as listener, trio.open_nursery() as nursery:
            await nursery.start(service.lister.run)
            await nursery.start(service.fetcher.run)
            nursery.start_soon(service.outputs.run)
            nursery.start_soon(housekeeper.run)

            def place() -> Message:
                words = {"pid": os.getpid(), "stand_in": stand_in, "settings": settings.to_json()}
                return Message(words, fds=[os.dup(state_fd), os.dup(catalog_fd)])

            nursery.start_soon(ipc.serve, listener, lambda peer: _answer(peer, service, housekeeper, peers, place))
            await channel.send({"pid": os.getpid(), "region": region})
            channel.close()
            nursery.start_soon(service.watch_files)
            nursery.start_soon(_end_when_lost, service)
            nursery.start_soon(_end_when_retired, service, nursery.cancel_scope)
            await _until_nobody_needs_us(peers, service)
            if stand_in:
                _forget_memory(settings.state_name)
            nursery.cancel_scope.cancel()
    finally:
        with contextlib.suppress(CacheFull, CacheBroken):
            cache.close()
        catalog.close()
        about.used_now(state_fd)
        log.info("the mover ends")


def _open_cache(state_fd: int, catalog_fd: int, limits: Limits, *, stand_in: bool) -> CacheWriter:
    """The cache on its disk; where that fails and the catalog stands in memory already, one that takes nothing."""
    life = secrets.token_bytes(16)
    try:
        return CacheWriter.open(state_fd, limits, life)
    except (CacheFull, CacheBroken) as exc:
        if not stand_in:
            raise
        log.info("no cache for now: %s", exc)
        return CacheWriter.open(catalog_fd, Limits(0, 0.0), life)


def _bring_catalog_home(state_name: str, state_fd: int) -> None:
    """Takes over the catalog that was in memory while the disk failed: no inode number changes by that."""
    if os.path.isdir(places.stand_in_path(state_name)):
        memory_fd = places.open_stand_in(state_name)
        schema.carry_over(memory_fd, state_fd)
        os.close(memory_fd)
        _forget_memory(state_name)


def _forget_memory(state_name: str) -> None:
    shutil.rmtree(places.stand_in_path(state_name), ignore_errors=True)


async def _answer(
    channel: Channel, service: Service, housekeeper: Housekeeper, peers: _Peers, place: Callable[[], Message]
) -> None:
    """One connection; those of keepers keep us alive, those of servers say what their mount wants."""
    counted = False
    mount: MountSettings | None = None

    async def handle(request: Message, progress: Progress) -> Message | dict[str, Any]:
        nonlocal counted, mount
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
        if operation == "place":
            if "settings" in request.body:
                mount = MountSettings.from_json(request.body["settings"])
                housekeeper.serve(mount)
            return place()
        if operation == "retire":
            service.retired.set()
            return {}
        answer = await service.handle(request, progress, mount)
        if operation == "check" and isinstance(answer, dict):
            answer["shared"] = peers.count > 1  # who asks is one of them
        return answer

    try:
        await ipc.answer_requests(channel, handle)
    finally:
        if counted:
            peers.go()


async def _end_when_lost(service: Service) -> None:
    await service.lost.wait()
    raise CatalogUnavailable("catalog or cache cannot be used any more; the next mover begins anew")


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


def _lock_files(state_fd: int, catalog_fd: int, *, stand_in: bool) -> list[int]:
    """Descriptors of the lock files: of the disk, as far as it has one to lock, and of the stand-in.

    Raises CatalogUnavailable where the disk should work and does not.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return [os.open(_LOCK, os.O_RDWR | os.O_CREAT | flags, 0o600, dir_fd=state_fd)]
    except OSError as exc:
        if not stand_in:
            raise CatalogUnavailable(f"its disk says: {os.strerror(exc.errno or 0)}") from exc
    fds = [os.open(_LOCK, os.O_RDWR | os.O_CREAT | flags, 0o600, dir_fd=catalog_fd)]
    with contextlib.suppress(OSError):  # a read-only disk
        fds.append(os.open(_LOCK, os.O_RDONLY | flags, dir_fd=state_fd))
    return fds


async def _take_lock(fds: list[int], socket_path: str) -> bool:
    """All of these locks, held until we end. False if another mover has one and answers."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            for fd in fds:
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


def main() -> None:
    """Entry of the process: `python -I -m mountkit.mover.process CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    processes.keep_files_private()
    logs.basic()
    sys.exit(trio.run(_main, int(sys.argv[1])))


if __name__ == "__main__":
    main()
