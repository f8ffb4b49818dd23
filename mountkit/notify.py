"""The service manager's side of a mount that is a unit: sd_notify, its store of descriptors, the jobs it has for us.

Nothing here knows what a mount is. `Manager.from_environment` is None outside of a unit, and everything else needs one.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "MOUNTKIT_UNIT", "MOUNTKIT_MANAGER")
HANDED_OVER = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""What tells a started process which descriptors it was given; for that one process, none of its children."""
TEMPORARY_FAILURE = 75
"""EX_TEMPFAIL of sysexits.h, the exit code on which our units are started again, whatever else failed."""
_FIRST_FD = 3
_PATIENCE_S = 5.0


def unit_words(environment: Mapping[str, str]) -> dict[str, str]:
    """What `status` says of the unit a process runs in; empty words outside of one."""
    unit = environment.get("MOUNTKIT_UNIT", "")
    return {"unit": unit, "unit_manager": environment.get("MOUNTKIT_MANAGER", "system") if unit else ""}


@dataclass(frozen=True, slots=True)
class Manager:
    """The systemd that started this process as a unit of type `notify`."""

    address: str
    unit: str
    user: bool
    watchdog_s: float | None
    """How often it wants to hear that we are well; None where it does not ask."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Manager | None:
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return None
        microseconds = environment.get("WATCHDOG_USEC", "")
        watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
        unit = environment.get("MOUNTKIT_UNIT", "")  # a unit of somebody's own need not say its name
        return cls(address, unit, environment.get("MOUNTKIT_MANAGER") == "user", watchdog_s)

    def tell(self, *assignments: str, fds: Sequence[int] = ()) -> None:
        """Sends assignments like `READY=1`. A manager that does not listen is no failure of the mount's."""
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_PATIENCE_S)
            channel.connect(address)
            socket.send_fds(channel, ["\n".join(assignments).encode("utf-8", "replace")], fds)

    def keep(self, name: str, fd: int) -> None:
        """Puts a descriptor into the store, where it outlives this process until the unit has stopped for good.

        Not polled by the manager: every request to the session would wake it, too.
        """
        self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd])

    def drop(self, name: str) -> None:
        """Takes what was kept under this name out of the store."""
        self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def flush(self) -> None:
        """Returns once the manager has read what was told: it forgets whose word it is when a process has ended."""
        ours, theirs = os.pipe()
        try:
            self.tell("BARRIER=1", fds=[theirs])
            os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)
            poll.poll(_PATIENCE_S * 1000)
        finally:
            os.close(ours)

    def systemctl(self, *words: str) -> list[str]:
        """The command that asks this manager."""
        return ["systemctl", *(["--user"] if self.user else []), *words]

    def asks_for_job(self) -> list[str]:
        """The command whose output `job_type` reads."""
        return self.systemctl("list-jobs", "--no-legend", "--plain", self.unit)

    def job_type(self, listed: str) -> str:
        """What the manager is about to do with the unit (start, stop, restart …); "" where it has no job for it.

        A stop and a restart send the same SIGTERM: only the job tells one from the other.
        """
        for line in listed.splitlines():
            words = line.split()
            if len(words) >= 4 and words[1] == self.unit:
                return words[2]
        return ""


def one_line(text: str) -> str:
    """`text` as a status may show it."""
    return " ".join(text.split())


def handed_over(environment: Mapping[str, str]) -> bool:
    """Whether this very process was given descriptors by the manager that started it."""
    return environment.get("LISTEN_PID") == str(os.getpid()) and environment.get("LISTEN_FDS", "0") != "0"


def take(environment: MutableMapping[str, str]) -> dict[str, int]:
    """The descriptors the manager kept for us, by name, now closed to our children; the variables are taken out."""
    found: dict[str, int] = {}
    if handed_over(environment):
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        for number in range(int(environment["LISTEN_FDS"])):
            fd = _FIRST_FD + number
            name = names[number] if number < len(names) else ""
            if name in found:  # of an older session: the newest word counts
                os.close(found[name])
            found[name] = fd
            os.set_inheritable(fd, False)
    for variable in HANDED_OVER:
        environment.pop(variable, None)
    return found
