"""Shows that the tests can fail: breaks the package in one place at a time and runs the test that stands for it.

    python -m tests.broken              every mutation
    python -m tests.broken NAME…        those whose names contain one of these words

Each mutation is made in a copy of the project with an environment of its own, because our processes are started with
`-I` and know no PYTHONPATH. A test that passes although the package is broken is an error; so is one that fails on
the copy before it was broken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mountkit import mountinfo

ROOT = Path(__file__).parents[1]
_LIMIT_S = 150


@dataclass(frozen=True)
class Mutation:
    """`old` stands in `file` exactly once; with `new` in its place `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # ---- serve
    Mutation(
        "what a dead server had in its hands is lost",
        "serve/server_pool.py",
        "            if self._resend and not session.resend(self._fuse_fd):\n",
        "            if False:\n",
        "tests/mount/test_kills.py::test_one_request_may_meet_any_number_of_deaths[resend]",
    ),
    Mutation(
        "nobody does again what a dead server had in its hands",
        "serve/server.py",
        '        if not body["first"] and not session.can_resend(settings):\n',
        "        if False:\n",
        "tests/mount/test_kills.py::test_one_request_may_meet_any_number_of_deaths[no-resend]",
    ),
    Mutation(
        "a keeper's successor is handed the descriptor that libfuse reads from",
        "serve/server.py",
        "succession.State(body, [wire.kernel, *start.fds[1:]], channel)",
        "succession.State(body, [fuse_fd, *start.fds[1:]], channel)",
        "tests/mount/test_kills.py::test_readers_notice_no_death[two-servers]",
    ),
    Mutation(
        "nobody starts a keeper when the old one dies",
        "serve/succession.py",
        "            if waited % 8 == slot:",
        "            if waited < 0:",
        "tests/mount/test_kills.py::test_a_keeper_is_replaced_while_the_bucket_is_away",
    ),
    Mutation(
        "every server opens a backing file of its own",
        "serve/shared.py",
        "            if found is None:\n                found =",
        "            if True:\n                found =",
        "tests/unit/test_shared.py",
    ),
    Mutation(
        "a file sealed again is taken for the spoilt one that is still open",
        "serve/shared.py",
        "            if found.file != file:",
        "            if False:",
        "tests/mount/test_disk.py -k sealed_again",
    ),
    Mutation(
        "late answers of libfuse go into the socket",
        "serve/wire.py",
        "        self.to_kernel()  # late answers of waiting handlers must not end in the socket while we sleep\n",
        "",
        "tests/unit/serve/test_wire.py",
    ),
    Mutation(
        "nobody looks whether who waits is being killed",
        "serve/responder.py",
        "                if _is_dying(pid):",
        "                if False:",
        "tests/mount/test_faults.py -k kill_9",
    ),
    Mutation(
        "a replaced object can still be opened",
        "serve/input_names.py",
        "        if row is None or row.superseded_at is not None:",
        "        if row is None:",
        "tests/unit/serve/test_input_fs.py",
    ),
    Mutation(
        "a removed cache directory is not made anew",
        "serve/state.py",
        "            if os.fstat(self.fd).st_nlink == 0:\n",
        "            if os.fstat(self.fd).st_nlink < 0:\n",
        "tests/mount/test_disk.py -k removed",
    ),
    Mutation(
        "the catalog stays in memory for ever",
        "serve/mover_host.py",
        "            if not await trio.to_thread.run_sync(self._state.works_at_home, abandon_on_cancel=True):",
        "            if True:",
        "tests/mount/test_disk.py -k others_fill",
    ),
    Mutation(
        "servers go on reading the catalog on the failed disk",
        "serve/server.py",
        "    if adopt_directory(place.fds[1], catalog_fd):",
        "    if False:",
        "tests/mount/test_disk.py -k read_only",
    ),
    Mutation(
        "who writes on goes into a log that was put aside",
        "logs.py",
        "        if not os.path.samestat(ours, there):\n",
        "        if False:\n",
        "tests/unit/test_logs.py",
    ),
    Mutation(
        "any user is listened to at a control socket",
        "ipc.py",
        "            if _is_trusted(accepted):\n",
        "            if True:\n",
        "tests/unit/test_ipc.py",
    ),
    # ---- cache
    Mutation(
        "cached bytes are given out unchecked",
        "cache/checked.py",
        "        bad = wrong_parts(view, crcs)\n",
        "        bad: list[int] = []\n",
        "tests/unit/cache/test_reading.py",
    ),
    Mutation(
        "a record is not asked whose bytes it holds",
        "cache/checked.py",
        "            if problem is None and head != record_header(content, size, row.crcs):",
        "            if False:",
        "tests/unit/cache",
    ),
    Mutation(
        "a sealed file that was written to is trusted",
        "cache/reader.py",
        "        if stamp_of(fd, stamp.life) == stamp:",
        "        if True:",
        "tests/unit/cache/test_sealing.py",
    ),
    Mutation(
        "a seal of an earlier life is trusted",
        "cache/reader.py",
        "        stamp, life = found\n",
        "        stamp = found[0]\n        life = stamp.life\n",
        "tests/unit/cache/test_sealing.py",
    ),
    Mutation(
        "the cache takes more than its limit",
        "cache/policy.py",
        "        if self._used() + size > self.limits.size_bytes + overshoot:\n            return False\n",
        "",
        "tests/unit/cache/test_writing.py",
    ),
    # ---- catalog
    Mutation(
        "evidence from the future counts as fresh",
        "catalog/view.py",
        "    known = [date if date <= now else 0.0 for date in dates if date is not None]",
        "    known = [date for date in dates if date is not None]",
        "tests/unit/catalog/test_tree.py",
    ),
    Mutation(
        "a listing whose pages do not advance goes on",
        "catalog/lister.py",
        "            if last and last <= reached and page.next_token:",
        "            if False:",
        "tests/unit/mover/test_lister.py",
    ),
    Mutation(
        "a clock set back asks for listings of the future",
        "catalog/lister.py",
        "        fresh_after = min(fresh_after, time.time())",
        "        pass",
        "tests/unit/mover/test_lister.py -k clock",
    ),
    # ---- mover
    Mutation(
        "each asker fetches for himself",
        "mover/fetcher.py",
        "                fetch = self._in_flight.get(key)\n",
        "                fetch = None\n",
        "tests/unit/mover/test_fetcher.py",
    ),
    Mutation(
        "bytes that somebody waits for are dropped",
        "mover/memory.py",
        "            if key not in self._pins:",
        "            if True:",
        "tests/unit/mover/test_memory.py",
    ),
    Mutation(
        "a cache that cannot give what it has is not gone around",
        "mover/service.py",
        "            if data is None and inline:  # the cache says that it has what it cannot give",
        "            if False:",
        "tests/unit/mover/test_service.py -k gone_around",
    ),
    Mutation(
        "a mount is shown what the TTL of another one allows",
        "mover/service.py",
        '        name, may_be_old = body["name"].encode("latin-1"), body["mount"].ttl_s > 0\n',
        '        name, may_be_old = body["name"].encode("latin-1"), self._settings.ttl_s > 0\n',
        "tests/mount/test_shared_mover.py -k rule",
    ),
    Mutation(
        "a mount follows another one against its own words",
        "serve/mover_host.py",
        "        terms.refuse_contradiction(self._asked, self.settings)\n",
        "",
        "tests/mount/test_shared_mover.py -k first",
    ),
    Mutation(
        "the mover can be read by others of the same user",
        "mover/process.py",
        "    processes.hide()\n",
        "",
        "tests/unit/test_processes.py",
    ),
    Mutation(
        "with the joint thread goes what it had",
        "mover/joint.py",
        "            self._leave()\n",
        "            pass\n",
        "tests/unit/mover/test_joint.py",
    ),
    Mutation(
        "what was rewritten as it was sent waits for a file that has gone",
        "mover/upload_order.py",
        "        if later is None:\n            return None\n",
        "        if later is None or later.kind is not OperationKind.PUT:\n            return None\n",
        "tests/unit/mover/test_uploads.py -k rewritten",
    ),
    Mutation(
        "what a dead mover had begun counts as never sent",
        "staging/journal.py",
        "        begun = started_at is not None and error is None\n",
        "        begun = False\n",
        "tests/unit/serve/test_output_renames.py",
    ),
    Mutation(
        "uploads wait for the wall clock",
        "mover/upload_mirror.py",
        "since=self._clock() - max(0.0, time.time() - operation.queued_at)",
        "since=self._clock() - time.time() + operation.queued_at",
        "tests/mount/test_clock.py -k closed",
    ),
    Mutation(
        "names are fresh that a wall clock ahead has dated",
        "catalog/view.py",
        "    known = [date if date <= now else 0.0 for date in dates if date is not None]",
        "    known = [date for date in dates if date is not None]",
        "tests/mount/test_clock.py -k readers",
    ),
    # ---- store
    Mutation(
        "another version's bytes are taken",
        "store/bodies.py",
        "    if not same_etag(etag, info.etag) or size != info.size:",
        "    if False:",
        "tests/store/test_errors.py",
    ),
    Mutation(
        "a short body is taken for the whole",
        "store/bodies.py",
        "    if came != length:",
        "    if False:",
        "tests/store/test_errors.py",
    ),
    Mutation(
        "the whole object is taken for a range",
        "store/bodies.py",
        "        if (offset, length) != (0, size):",
        "        if False:",
        "tests/store/test_errors.py",
    ),
    Mutation(
        "nothing is tried again",
        "store/retry.py",
        "            except StoreError as exc:\n                attempts.after(exc)\n",
        "            except StoreError:\n                raise\n",
        "tests/store/test_retry.py",
    ),
]


class Copy:
    """A copy of the project and an environment whose `mountkit` is the copy's."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "project"
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        environment = directory / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        site = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
        # Files named .pth are read in the environment's own directory only, so an editable install stays out of this.
        Path(site, "copy.pth").write_text(f"{self.root}\n{sysconfig.get_path('purelib')}\n")
        self._bin = environment / "bin"
        for program in Path(sys.executable).parent.iterdir():
            if not (self._bin / program.name).exists():
                (self._bin / program.name).symlink_to(program)

    def run(self, test: str) -> tuple[int, str]:
        """pytest's exit code and its last words."""
        path = f"{self._bin}:{os.environ.get('PATH', os.defpath)}"
        options = ["-q", "-x", "-p", "no:cacheprovider", "--timeout", str(_LIMIT_S), f"--basetemp={self.root}/../tests"]
        command = [str(self._bin / "python"), "-m", "pytest", *options, *test.split()]
        done = subprocess.run(
            command, cwd=self.root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return done.returncode, (lines or done.stdout.splitlines() or done.stderr.splitlines() or [""])[-1][:140]


def show(mutation: Mutation, directory: Path, *, proven: set[str]) -> bool:
    """Whether the test fails because of the mutation, and only because of it."""
    copy = Copy(directory)
    target = copy.root / "mountkit" / mutation.file
    text = target.read_text()
    if text.count(mutation.old) != 1:
        print(f"OUTDATED  {mutation.name}: its text stands {text.count(mutation.old)} times in {mutation.file}")
        return False
    if mutation.test not in proven:
        code, words = copy.run(mutation.test)
        if code != 0:
            print(f"UNSOUND   {mutation.name}: {mutation.test} fails without it: {words}")
            return False
        proven.add(mutation.test)
    target.write_text(text.replace(mutation.old, mutation.new))
    started = time.monotonic()
    code, words = copy.run(mutation.test)
    failed = code == 1  # pytest: tests were run, and some failed
    verdict = "shown" if failed else "NOT SEEN"
    print(f"{verdict:9} {mutation.name}: {words} ({time.monotonic() - started:.0f} s)", flush=True)
    return failed


def _take_away_what_is_mounted(below: str) -> None:
    """A broken build may leave mounts."""
    for point in mountinfo.ours():
        if point.directory.startswith(below):
            subprocess.run(["umount", "-l", "--", point.directory], check=True)


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    proven: set[str] = set()
    good = 0
    for mutation in chosen:
        with tempfile.TemporaryDirectory(prefix="mountkit-broken-") as directory:
            good += show(mutation, Path(directory), proven=proven)
            _take_away_what_is_mounted(directory)
    print(f"{good} of {len(chosen)} mutations are seen by their tests")
    return good != len(chosen)


if __name__ == "__main__":
    sys.exit(main())
