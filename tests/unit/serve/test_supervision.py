"""What the keeper says to systemd, and asks of its own mount."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountkit.notify import Manager
from mountkit.serve import supervision
from mountkit.serve.supervision import Supervision
from tests.unit.mover.harness import in_trio, settled


async def _status() -> dict[str, Any]:
    return {"source": "s3://b", "directory": "/m", "state": "ok", "reasons": [], "reads": {}, "cache": {}}


@in_trio
async def test_a_restart_kills_no_server_over_a_probe_and_nothing_is_probed_after_it(
    monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """systemd would wait for the process that waits for the dead server, and the next keeper for systemd."""
    asked, answer, ceased = list[str](), trio.Event(), trio.Event()

    async def answers(directory: str, _patience_s: float) -> bool:
        asked.append(directory)
        await answer.wait()
        return True

    async def cease() -> None:
        await told.cease()
        ceased.set()

    monkeypatch.setattr(supervision, "_answers", answers)
    told = Supervision(Manager("/nowhere", "", False, None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.report, "/m", _status)
        await settled()
        nursery.start_soon(cease)
        await settled()
        assert (asked, ceased.is_set()) == (["/m"], False)
        answer.set()
        await ceased.wait()
        await trio.sleep(60)
        assert asked == ["/m"]
        nursery.cancel_scope.cancel()
