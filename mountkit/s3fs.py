"""The s3fs driver: a process that runs s3fs for one mount, watches it, starts it again, and answers for it.

It stands where the keeper of a `fuse` mount stands: the same start, the same control socket, the same `status`. The
bucket is asked by mountkit first, so that what is wrong with it has a name. s3fs gets its keys by a descriptor (with a
session token, in its environment), never in its arguments. If this process is killed, s3fs goes on unwatched, and
`status` says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import trio

from mountkit import __version__, about, errors, ipc, logs, mountinfo, notify, places, processes
from mountkit.config import MountSettings
from mountkit.errors import MountError, MountkitError, UsageError
from mountkit.ipc import Channel, ChannelClosed, Message, Progress
from mountkit.serve import session
from mountkit.serve.supervision import Supervision
from mountkit.store.access import Access, Wallet, find_access
from mountkit.store.opening import connect

log = logging.getLogger(__name__)
_MOUNTED_S, _PROOF_S, _STOP_S = 20.0, 10.0, 10.0
_AGAIN_S, _AGAIN_LONGEST_S = 0.1, 5.0
_FOR_EVER_S = 10 * 365 * 86400


def options(settings: MountSettings, access: Access, cache: str) -> list[str]:
    """The settings in s3fs's words; no secret among them.

    One mask stands for files and directories, and objects have no mode: files show an x bit that ours do not.
    """
    masks = f"{0o222 | settings.umask:04o}"
    disk = os.statvfs(cache)
    words = [
        *("ro", "nosuid", "nodev", "subtype=mountkit", f"fsname={mountinfo.S3FS_MARK}{settings.source}"),
        *(f"url={access.endpoint}", f"endpoint={access.region}", f"use_cache={cache}"),
        f"ensure_diskfree={int(disk.f_blocks * disk.f_frsize * settings.cache_free_share) >> 20}",
        *([] if settings.executable else ["noexec"]),
        *(f"uid={settings.uid}", f"gid={settings.gid}", f"umask={masks}", f"mp_umask={masks}"),
        f"stat_cache_expire={int(min(settings.ttl_s, _FOR_EVER_S))}",
        *("sigv4", "dbglevel=err", "retries=5", "connect_timeout=10", "readwrite_timeout=30"),
    ]
    switches = {
        "use_path_request_style": access.path_style,
        "requester_pays": access.requester_pays,
        "public_bucket=1": settings.source.anonymous,
        "allow_other": settings.allow_other,
        "max_stat_cache_size=0": settings.ttl_s < 1,
    }
    return words + [word for word, wanted in switches.items() if wanted]


def command(settings: MountSettings, words: list[str]) -> list[str]:
    """The command that serves the mount in the foreground."""
    prefix = os.fsdecode(settings.source.prefix.rstrip(b"/"))
    remote = f"{settings.source.bucket}:/{prefix}" if prefix else settings.source.bucket
    flags = [flag for word in words for flag in ("-o", session.escape(word))]
    return ["s3fs", remote, settings.directory, "-f", *flags]


def environment(access: Access) -> dict[str, str]:
    """What s3fs may know: the way to the server, nothing of the caller."""
    found = processes.environment()
    if access.proxy:  # curl would take any that is set, also for hosts that need none
        found |= {"http_proxy": access.proxy, "https_proxy": access.proxy}
    if access.ca_bundle:
        found["CURL_CA_BUNDLE"] = access.ca_bundle
    return found


@contextlib.contextmanager
def _keys(wallet: Wallet) -> Iterator[tuple[list[str], dict[str, str], list[int]]]:
    """Options, variables and descriptors by which s3fs finds the keys while this lasts: it reads them once."""
    if not wallet.signs:
        yield [], {}, []
        return
    found = wallet.current()
    if found.token:  # Debian's s3fs (1.90) takes one from nowhere else, and nobody but us and root reads it there
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        values = (found.access_key, found.secret_key, found.token)
        yield ["use_session_token"], dict(zip(names, values, strict=True)), []
        return
    fd = os.memfd_create("mountkit-s3fs", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, f"{found.access_key}:{found.secret_key}\n".encode())
        yield [f"passwd_file=/proc/self/fd/{fd}"], {}, [fd]
    finally:
        os.close(fd)


class Watcher:
    """One mount served by s3fs. Make it, `run` it; it returns when the mount is gone."""

    def __init__(self, settings: MountSettings, supervision: Supervision) -> None:
        self.settings, self._supervision = settings, supervision
        self._cache = places.state_path(settings.cache_directory, settings.state_name)
        self._since = time.time()
        self._restarts = 0
        self._trouble = ""
        self._stop = trio.Event()
        self._region = ""

    async def run(self, report: Channel | None) -> None:
        """Mounts and watches until the mount is taken away. Raises MountkitError if it cannot be mounted."""
        session.check_device(allow_other=self.settings.allow_other)
        places.ensure_runtime_directory()
        state_fd = places.open_state(self.settings.cache_directory, self.settings.state_name)
        if report is not None:
            logs.to_state_directory(state_fd)
        await self._start(check=True)
        about.write(state_fd, self.settings)
        try:
            await self._prove()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_on_signal)
                while await self._serve(report):
                    report = None
                    await self._start_again()
                nursery.cancel_scope.cancel()
        finally:
            self._process.kill()  # of a mount that is gone; one that lives is taken away before
            self._take_away()
        log.info("%s is unmounted", self.settings.directory)

    # ---- start ---------------------------------------------------------------------------------------------
    async def _start(self, *, check: bool) -> None:
        """Starts s3fs and returns once the kernel shows its mount. Raises MountkitError."""
        access, wallet = await trio.to_thread.run_sync(self._ask_the_bucket, check)
        words = options(self.settings, access, self._cache)
        with _keys(wallet) as (more, variables, fds):
            line = command(self.settings, words + more)
            self._process = _run(line, environment(access) | variables, fds)
            try:
                await self._until_mounted()
            except BaseException:
                self._process.kill()
                self._take_away()
                raise
        log.info("%s is mounted at %s by s3fs", self.settings.source, self.settings.directory)

    def _ask_the_bucket(self, check: bool) -> tuple[Access, Wallet]:
        source = self.settings.source
        store, self._region = connect(source, check=check, region=self._region)
        store.close()
        wallet = Wallet(source)
        access = find_access(source)
        return (access if access.region == self._region else access.in_region(source, self._region)), wallet

    async def _until_mounted(self) -> None:
        with trio.move_on_after(_MOUNTED_S):
            while True:
                if (point := self._point()) is not None:
                    self.device = point.device
                    return
                if self._process.poll() is not None:
                    raise MountError(
                        f"s3fs ended with exit code {self._process.returncode} before it had mounted",
                        f"its words are in {logs.place(os.path.join(self._cache, logs.FILE_NAME))}",
                    )
                await trio.sleep(0.02)
        raise MountError(f"s3fs did not mount {self.settings.directory} within {_MOUNTED_S:g} s")

    def _point(self) -> mountinfo.MountPoint | None:
        found = [m for m in mountinfo.ours() if m.directory == self.settings.directory and m.driver == "s3fs"]
        return found[-1] if found else None

    async def _prove(self) -> None:
        """Another process must get an answer from the mount."""
        said = await processes.ask(["stat", "-c", "%d", "--", self.settings.directory], patience_s=_PROOF_S)
        if said is None:
            raise MountError(f"the mount at {self.settings.directory} did not answer within {_PROOF_S:g} s")
        if said.code != 0:
            raise MountError(f"the mount at {self.settings.directory} does not answer: {said.err.strip()}")

    # ---- watching ------------------------------------------------------------------------------------------
    async def _serve(self, report: Channel | None) -> bool:
        """Answers for this s3fs until it has ended and, if that was no order, another serves; False: it is over."""
        socket_path = places.keeper_socket(self.device)
        async with ipc.listening(socket_path) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(ipc.serve, listener, lambda peer: ipc.answer_requests(peer, self._handle))
            if report is not None:
                try:
                    await report.send({"ready": True, "directory": self.settings.directory, "pid": os.getpid()})
                except ChannelClosed:
                    raise MountError("the command that asked for the mount is gone") from None
            nursery.start_soon(self._supervision.report, self.settings.directory, self._status)
            await self._until_ended()
            again = not self._stop.is_set() and self._point() is not None
            if again:
                code = self._process.returncode
                log.warning("s3fs died (%s); starting another", _how(code))
                await self._until_the_bucket_answers(_how(code))
            nursery.cancel_scope.cancel()
        return again and not self._stop.is_set()

    async def _until_ended(self) -> None:
        watched = processes.Watched(self._process.pid)
        try:
            async with trio.open_nursery() as nursery:

                async def forced() -> None:
                    await self._stop.wait()
                    with trio.move_on_after(_STOP_S):
                        await trio.sleep_forever()
                    watched.kill()

                nursery.start_soon(forced)
                self._process.returncode = await watched.wait()
                nursery.cancel_scope.cancel()
        finally:
            watched.close()

    async def _until_the_bucket_answers(self, how: str) -> None:
        """The dead mount stays in sight meanwhile, and `status` names what is missing."""
        delay = _AGAIN_S
        while not self._stop.is_set():
            self._trouble = f"s3fs died ({how})"
            try:
                await trio.to_thread.run_sync(self._ask_the_bucket, True)
            except MountkitError as exc:
                self._trouble += f", and there is no other yet: {exc}"
            else:
                return
            with trio.move_on_after(delay):
                await self._stop.wait()
            delay = min(_AGAIN_LONGEST_S, delay * 2)

    async def _start_again(self) -> None:
        delay = _AGAIN_S
        while True:
            self._take_away()
            try:
                await self._start(check=False)
            except MountkitError as exc:
                log.error("s3fs does not start again: %s", exc)
                if delay >= _AGAIN_LONGEST_S:
                    raise
                await trio.sleep(delay)
                delay *= 2
            else:
                self._restarts += 1
                self._trouble = ""
                return

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                what = f"unmounting {self.settings.directory}"
                log.info("signal %d: %s", number, what)
                self._stop.set()
                async with self._supervision.stopping(what):
                    await trio.to_thread.run_sync(self._take_away)

    def _take_away(self) -> None:
        if self._point() is not None:
            with contextlib.suppress(MountkitError):
                session.unmount(self.settings.directory, lazy=True)

    # ---- the control socket --------------------------------------------------------------------------------
    async def _handle(self, request: Message, _progress: Progress) -> dict[str, Any]:
        operation = request.body.get("op")
        if operation == "status":
            return await self._status()
        if operation == "unmount":
            force = bool(request.body.get("force"))
            if force:
                session.abort(self.device)
            await trio.to_thread.run_sync(lambda: session.unmount(self.settings.directory, lazy=force))
            self._stop.set()
            return {"unmounted": True, "keeper_pid": os.getpid(), "mover_pid": 0}
        raise UsageError(f"{self.settings.directory} is served by s3fs, which knows no `{operation}`")

    async def _status(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "source": str(settings.source),
            "directory": settings.directory,
            "driver": "s3fs",
            "state": "degraded" if self._trouble else "ok",
            "reasons": [self._trouble] if self._trouble else [],
            "keeper_pid": os.getpid(),
            "server_pids": [self._process.pid],
            "mover_pid": None,
            "cache_directory": settings.cache_directory,
            "state_directory": self._cache,
            "log": logs.place(os.path.join(self._cache, logs.FILE_NAME)),
            **notify.unit_words(os.environ),
            "device": self.device,
            "since": self._since,
            "endpoint": settings.source.endpoint,
            "ttl_s": settings.ttl_s if settings.ttl_s != float("inf") else None,
            "passthrough": False,
            "passthrough_reason": "s3fs serves",
            "reads": {},
            "cache": {},
            "requests": {},
            "mover": {},
            "restarts": {"server": self._restarts, "mover": 0},
            "version": __version__,
        }


def _run(line: list[str], variables: dict[str, str], fds: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        line,
        cwd="/",
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        pass_fds=fds,
        start_new_session=True,
    )


def _how(code: int | None) -> str:
    if code is None:
        return "somehow"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


async def _main(channel_fd: int) -> int:
    """One descriptor: a channel on which the start comes. See `mounting`."""
    channel = Channel.from_fd(channel_fd)
    try:
        start = await channel.receive()
    except ChannelClosed:
        return 1
    processes.take_environment(start.fds[0] if start.fds else None)
    foreground = bool(start.body.get("foreground"))
    supervision = Supervision.from_environment()
    watcher = Watcher(MountSettings.from_json(start.body["settings"]), supervision)
    try:
        await watcher.run(None if foreground else channel)
    except (MountkitError, BaseExceptionGroup) as exc:
        error = errors.named(exc)
        if error is None:
            raise
        if foreground:
            print(errors.two_lines(error), file=sys.stderr)  # noqa: T201
        else:
            with contextlib.suppress(ChannelClosed):
                await channel.send({"error": error.to_json()})
        return supervision.failed(error)
    return 0


def main() -> None:
    """Entry of the process: `python -I -m mountkit.s3fs CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    logs.basic()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal must not end a mount
    sys.exit(trio.run(_main, int(sys.argv[1])))


if __name__ == "__main__":
    main()
