"""The server process: answers the kernel for one mount. Holds no credentials and never talks to the network.

It is started with one descriptor, its end of a socket pair to the keeper. The keeper's `serve` message brings the
settings and the descriptors (FUSE, shared memory, state directory); the server answers `ready` once libfuse has
negotiated. Everything it knows is in the catalog, the cache and that message, so it can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from typing import Any

import trio

from mountkit import logs, processes
from mountkit.cache.reader import CacheReader
from mountkit.catalog.view import CatalogView
from mountkit.config import MountSettings
from mountkit.ipc import Channel, ChannelClosed, Message
from mountkit.serve import fuse, session, succession
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_responder import OutputResponder
from mountkit.serve.output_upkeep import Upkeep
from mountkit.serve.outputs import open_outputs
from mountkit.serve.responder import Responder
from mountkit.serve.server_pool import MISMATCH
from mountkit.serve.shared import INJECTED_PLACES, ServerCounters, SharedMemory
from mountkit.serve.state import adopt_directory
from mountkit.serve.tracing import Tracing
from mountkit.serve.values import Presentation
from mountkit.serve.wire import InitMismatch, Wire

log = logging.getLogger(__name__)
SESSION_ENDED = 0
_DROP_DELETED_S = 30.0
_MEASURE_S = 5.0


class TrialPassed(Exception):
    """This server could join the session. It was only asked that, and has read nothing from the kernel."""


async def _main(channel_fd: int) -> int:
    channel = Channel.from_fd(channel_fd)
    try:
        start = await channel.receive()
    except ChannelClosed:
        return SESSION_ENDED
    fuse_fd, shared_fd, state_fd, catalog_fd, *_secrets = start.fds  # credentials are only kept for the next keeper
    body = start.body
    settings = MountSettings.from_json(body["settings"])
    logs.to_state_directory(catalog_fd)
    shared = SharedMemory(shared_fd)
    slot = int(body["slot"])
    counters = shared.counters(slot)
    ready = trio.Event()
    shape: list[int] = []

    def on_ready(negotiated: tuple[int, ...]) -> None:
        if body.get("trial"):
            raise TrialPassed
        shared.store_server(slot, os.getpid(), processes.started(os.getpid()))
        shape.extend(negotiated)
        ready.set()

    def before_wait() -> None:
        counters.resent += wire.resent
        wire.resent = 0
        shared.store_counters(slot, counters)

    places = itertools.cycle(INJECTED_PLACES)

    def note_injected(unique: int) -> None:
        shared.store_in_flight(slot, next(places), unique)

    wire = Wire(
        fuse_fd,
        bytes.fromhex(body["init"]),
        first=body["first"],
        passthrough=body["passthrough"],
        writable=settings.outputs is not None,
        buffer=shared.request_buffer(slot),
        expected_shape=body.get("shape"),
        on_ready=on_ready,
        before_wait=before_wait,
        note_injected=note_injected,
    )
    show = Presentation(
        settings.uid,
        settings.gid,
        settings.umask,
        settings.ttl_s,
        body["passthrough"] and not body["stand_in"],  # a disk that fails is read through us, who can go around it
        settings.data_budget_s,
        settings.metadata_budget_s,
        writable=settings.outputs is not None,
    )
    view, cache = CatalogView.open(catalog_fd), CacheReader.open(state_fd)
    files: InputFileSystem

    def follow(place: Message) -> None:
        _move(place, state_fd, catalog_fd, cache, view)
        body["stand_in"] = place.body["stand_in"]
        files.names.show_sealed(body["passthrough"] and not body["stand_in"])

    mover = MoverLink(body["mover_socket"], on_place=follow, settings=settings)
    files = InputFileSystem(view, cache, mover, show, counters, trace=Tracing(state_fd).opened)
    responder = Responder(wire, files, shared, slot)
    upkeep: Upkeep | None = None
    if settings.outputs is not None:
        outputs, upkeep = open_outputs(
            state_fd,
            files,
            view,
            mover,
            show,
            settings.outputs,
            directory=settings.directory,
            source=str(settings.source),
            first=body["first"],
        )
        responder = OutputResponder(wire, outputs, files, shared, slot, passthrough=body["passthrough"])
    handlers = responder.handlers()
    wire.answer_raw(handlers)
    # Not `fuse_fd` itself: under that number libfuse finds a socket while it is handed a request.
    state = succession.State(body, [wire.kernel, *start.fds[1:]], channel)

    async def report_ready() -> None:
        await ready.wait()
        state.shape = shape
        with contextlib.suppress(ChannelClosed):
            await channel.send({"ready": True, "shape": shape})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drop_deleted, cache)
        nursery.start_soon(_measure, shared, slot, counters)
        nursery.start_soon(files.names.doubts.voice)
        await nursery.start(mover.run)
        await nursery.start(responder.run)
        if not body["first"] and not session.can_resend(settings):
            responder.do_again(handlers)
        if upkeep is not None:
            nursery.start_soon(upkeep.run)
        nursery.start_soon(report_ready)
        nursery.start_soon(succession.follow_keeper, state)
        await fuse.serve(wire, files, fuse_fd)
        before_wait()
        if upkeep is not None:
            await upkeep.finish()
        with contextlib.suppress(ChannelClosed):
            await state.channel.send({"ended": True})
        nursery.cancel_scope.cancel()
    return SESSION_ENDED


def _move(place: Message, state_fd: int, catalog_fd: int, cache: CacheReader, view: CatalogView) -> None:
    """Reads where this mover writes; our descriptors, which the next keeper will get, lead there, too."""
    if adopt_directory(place.fds[0], state_fd):
        cache.move(state_fd)
    if adopt_directory(place.fds[1], catalog_fd):
        view.move(catalog_fd)
        logs.to_state_directory(catalog_fd)
    for fd in place.fds:
        os.close(fd)


async def _drop_deleted(cache: CacheReader) -> None:
    while True:
        await trio.sleep(_DROP_DELETED_S)
        cache.drop_deleted()


async def _measure(shared: SharedMemory, slot: int, counters: ServerCounters) -> None:
    while True:
        counters.pss_bytes = processes.pss_bytes()
        shared.store_counters(slot, counters)
        await trio.sleep(_MEASURE_S)


def _holds(group: BaseExceptionGroup[Any], kind: type[Exception]) -> bool:
    found, _ = group.split(kind)
    return found is not None


def main() -> None:
    """Entry of the process: `python -I -m mountkit.serve.server CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    processes.keep_files_private()
    logs.basic()
    try:
        sys.exit(trio.run(_main, int(sys.argv[1])))
    except BaseExceptionGroup as group:
        if _holds(group, TrialPassed):
            sys.exit(0)
        if _holds(group, InitMismatch):
            log.error("this server's libfuse does not fit the session: %s", group)
            sys.exit(MISMATCH)
        raise


if __name__ == "__main__":
    main()
