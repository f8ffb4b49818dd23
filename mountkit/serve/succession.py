"""What servers do when the keeper dies: they go on serving, and see to it that there is a keeper again.

Every server holds all a keeper needs: the descriptors (the sealed memory with the credentials among them, which a
server never reads), the INIT bytes and the settings, in the message it was started with. When its channel to the
keeper closes it tries to join a keeper that may be there already; the one with the lowest slot starts a new one first,
the others only if none came. Two keepers cannot both stay: each holds a lock on the session for its life.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import trio

from mountkit import processes
from mountkit.ipc import Channel, ChannelClosed

log = logging.getLogger(__name__)
_TURN_S = 0.5
KEEPER_MODULE = "mountkit.serve.keeper"


@dataclass(slots=True)
class State:
    """What a server hands to a new keeper: `start` is the message it was started with, `fds` came with that."""

    start: dict[str, Any]
    fds: list[int]
    channel: Channel
    """To the keeper of the day."""
    shape: list[int] = field(default_factory=list)


async def follow_keeper(state: State) -> None:
    """Waits for the keeper's end, again and again, and helps the next one into office."""
    while True:
        try:
            while True:
                await state.channel.receive()
        except ChannelClosed:
            state.channel.close()
        log.warning("the keeper is gone; serving goes on")
        state.channel = await _find_keeper(state)


async def _find_keeper(state: State) -> Channel:
    slot = int(state.start["slot"])
    waited = 0
    while True:
        try:
            channel = await Channel.connect(state.start["keeper_socket"])
            join = {"op": "join", "slot": slot}
            await channel.send(join)
        except (OSError, ChannelClosed):
            if waited % 8 == slot:
                await _start_keeper(state)
            waited += 1
            await trio.sleep(_TURN_S)
        else:
            log.info("a new keeper is there")
            return channel


async def _start_keeper(state: State) -> None:
    """Starts a keeper that adopts this session; if another holds the lock already it ends by itself."""
    log.warning("starting a new keeper")
    process, fd = processes.spawn(KEEPER_MODULE)
    channel = Channel.from_fd(fd)
    try:
        await channel.send({"adopt": state.start, "shape": state.shape}, fds=state.fds)
        with trio.move_on_after(10.0):
            await channel.receive()
    except ChannelClosed:
        pass
    finally:
        channel.close()
    processes.reap_later(process.pid)
