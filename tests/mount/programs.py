"""Real programs that write: each writes into a directory and says what must be read back from it, there or anywhere."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

Check = Callable[[Path], None]
"""Raises unless the directory it is given holds what the program wrote."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def small_tree(directory: Path) -> Path:
    """A directory of all kinds, as archives hold them."""
    top = directory / "tree"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir()
    for number in range(20):
        path = top / "deep" / f"file {number}.txt"
        path.write_bytes(bytes(range(256)) * number)
        os.utime(path, ns=(1_500_000_000_000_000_000, 1_500_000_000_000_000_000 + number))
    (top / "deep" / "er" / "script.sh").write_text("#!/bin/sh\n")
    (top / "deep" / "er" / "script.sh").chmod(0o755)
    os.symlink("deep/er", top / "link")
    return top


def same_tree(one: Path, other: Path) -> None:
    run("diff", "-r", "--no-dereference", one, other)


def tar(directory: Path, scratch: Path) -> Check:
    source = small_tree(scratch)
    run("tar", "cf", scratch / "a.tar", "-C", scratch, "tree")
    run("tar", "xf", scratch / "a.tar", "-C", directory)
    assert (directory / "tree" / "deep" / "file 3.txt").stat().st_mtime_ns // 10**9 == 1_500_000_000
    return lambda where: same_tree(source, where / "tree")


def unzip(directory: Path, scratch: Path) -> Check:
    source = small_tree(scratch)
    run("zip", "-qry", scratch / "a.zip", "tree", cwd=scratch)
    run("unzip", "-q", scratch / "a.zip", "-d", directory)
    return lambda where: same_tree(source, where / "tree")


def zip_file(directory: Path, _scratch: Path) -> Check:
    with zipfile.ZipFile(directory / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(50):
            archive.writestr(f"n{number}", bytes([number]) * 5000)
    with zipfile.ZipFile(directory / "a.zip", "a") as archive:
        archive.writestr("later", b"appended")

    def check(where: Path) -> None:
        with zipfile.ZipFile(where / "a.zip") as archive:
            assert archive.testzip() is None
            assert archive.read("later") == b"appended"
            assert len(archive.namelist()) == 51

    return check


def cp(directory: Path, scratch: Path) -> Check:
    source = small_tree(scratch)
    run("cp", "-a", source, directory)
    for path in source.rglob("*"):
        copy = directory / "tree" / path.relative_to(source)
        assert copy.lstat().st_mode == path.lstat().st_mode
        assert path.is_symlink() or copy.stat().st_mtime_ns == path.stat().st_mtime_ns, path
    return lambda where: same_tree(source, where / "tree")


def rsync(directory: Path, scratch: Path) -> Check:
    source = small_tree(scratch)
    run("rsync", "-a", f"{source}/", directory / "tree")
    assert rsynced(source, directory / "tree") == []
    return lambda where: same_tree(source, where / "tree")


def rsynced(source: Path, target: Path) -> list[str]:
    """What another `rsync -a` finds to send."""
    return run("rsync", "-ai", f"{source}/", f"{target}").splitlines()


def git(directory: Path, scratch: Path) -> Check:
    origin = scratch / "origin"
    origin.mkdir()
    me = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    run("git", "init", "-q", "-b", "main", cwd=origin)
    small_tree(origin)
    run("git", "add", "-A", cwd=origin)
    run("git", *me, "commit", "-qm", "one", cwd=origin)
    clone = directory / "clone"
    run("git", "clone", "-q", origin, clone)
    (clone / "more.txt").write_text("more")
    run("git", "add", "-A", cwd=clone)
    run("git", *me, "commit", "-qm", "two", cwd=clone)
    run("git", "gc", "-q", cwd=clone)

    def check(where: Path) -> None:
        config = ("-c", f"safe.directory={where / 'clone'}")
        run("git", *config, "fsck", "--strict", cwd=where / "clone")
        assert run("git", *config, "log", "--format=%s", cwd=where / "clone").split() == ["two", "one"]
        assert run("git", *config, "status", "--porcelain", cwd=where / "clone") == ""

    return check


def sqlite(journal_mode: str) -> Callable[[Path, Path], Check]:
    def write(directory: Path, _scratch: Path) -> Check:
        path = directory / f"{journal_mode}.sqlite"
        with closing(sqlite3.connect(path)) as db:
            assert db.execute(f"PRAGMA journal_mode = {journal_mode}").fetchone() == (journal_mode,)
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
            for turn in range(5):
                with db:
                    db.executemany("INSERT INTO t (body) VALUES (?)", [(bytes([turn]) * 500,)] * 100)
            with db:
                db.execute("DELETE FROM t WHERE id % 7 = 0")
            db.execute("VACUUM")

        def check(where: Path) -> None:
            with closing(sqlite3.connect(f"file:{where / path.name}?mode=ro&immutable=1", uri=True)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert db.execute("SELECT count(*) FROM t").fetchone() == (429,)

        return check

    return write


def numpy_memmap(directory: Path, _scratch: Path) -> Check:
    array = np.lib.format.open_memmap(directory / "a.npy", mode="w+", dtype=np.float32, shape=(300, 400))
    array[:] = np.arange(120_000, dtype=np.float32).reshape(300, 400)
    array[7, 9] = -1
    array.flush()
    del array
    np.savez(directory / "b.npz", x=np.arange(1000), y=np.ones((20, 20)))

    def check(where: Path) -> None:
        read = np.load(where / "a.npy", mmap_mode="r")
        assert read[7, 9] == -1
        assert float(read[299, 399]) == 119_999.0
        assert np.load(where / "b.npz")["x"].sum() == 499_500

    return check


def hdf5(directory: Path, _scratch: Path) -> Check:
    import h5py

    path = directory / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(50_000).reshape(500, 100), chunks=(50, 50), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["x"][3, 4] = -7
        file.create_group("later").attrs["name"] = "added"

    def check(where: Path) -> None:
        with h5py.File(where / "a.h5", "r") as file:
            assert file["x"][3, 4] == -7
            assert int(file["x"][499, 99]) == 49_999
            assert file["later"].attrs["name"] == "added"

    return check


def parquet(directory: Path, _scratch: Path) -> Check:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"label": [i % 4 for i in range(4000)], "value": list(range(4000))})
    pq.write_to_dataset(table, str(directory / "set"), partition_cols=["label"])

    def check(where: Path) -> None:
        read = pq.read_table(str(where / "set"))
        assert sorted(read.column("value").to_pylist()) == list(range(4000))

    return check


def safetensors(directory: Path, _scratch: Path) -> Check:
    from safetensors.numpy import load_file, save_file

    tensors = {f"layer{i}": np.full((64, 64), i, dtype=np.float32) for i in range(10)}
    save_file(tensors, str(directory / "m.safetensors"))
    save_file(tensors | {"more": np.ones(7, dtype=np.float32)}, str(directory / "m.safetensors"))

    def check(where: Path) -> None:
        read = load_file(str(where / "m.safetensors"))
        assert len(read) == 11
        assert all((read[name] == tensors[name]).all() for name in tensors)

    return check


def tensorboard(directory: Path, _scratch: Path) -> Check:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(directory / "run"))
    for step in range(100):
        writer.add_scalar("loss", 1.0 / (step + 1), step)
        if step % 10 == 9:
            writer.flush()
    writer.close()
    (events,) = (directory / "run").glob("events.*")
    written = events.read_bytes()
    assert written.count(b"loss") == 100
    return lambda where: _equal((where / "run" / events.name).read_bytes(), written)


def log_file(directory: Path, _scratch: Path) -> Check:
    handler = logging.FileHandler(directory / "train.log", mode="a")
    logger = logging.getLogger("programs.log_file")
    logger.addHandler(handler)
    for step in range(200):
        logger.warning("step %d", step)
    handler.close()
    logger.removeHandler(handler)
    lines = [f"step {step}" for step in range(200)]
    return lambda where: _equal((where / "train.log").read_text().splitlines(), lines)


def fio(directory: Path, scratch: Path) -> Check:
    run(
        *("fio", "--name=job", f"--directory={directory}", "--rw=randwrite", "--bs=4k-64k", "--size=24m"),
        *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--ioengine=psync", "--numjobs=2"),
        cwd=scratch,  # where it leaves how far its verification came
    )
    sizes = {path.name: path.stat().st_size for path in directory.glob("job.*")}
    assert sizes == {"job.0.0": 24 << 20, "job.1.0": 24 << 20}
    copies = {name: (directory / name).read_bytes() for name in sizes}
    return lambda where: _equal({name: (where / name).read_bytes() for name in sizes}, copies)


def torch_save(directory: Path, _scratch: Path) -> Check:
    import torch

    state = {"weight": torch.arange(100_000, dtype=torch.float32), "step": 7}
    torch.save(state, directory / "tmp.pt")
    os.replace(directory / "tmp.pt", directory / "ckpt.pt")

    def check(where: Path) -> None:
        read = torch.load(where / "ckpt.pt", weights_only=True)
        assert read["step"] == 7
        assert torch.equal(read["weight"], state["weight"])

    return check


def _equal(found: object, expected: object) -> None:
    assert found == expected


QUICK: dict[str, Callable[[Path, Path], Check]] = {
    "tar": tar,
    "unzip": unzip,
    "zipfile": zip_file,
    "cp": cp,
    "rsync": rsync,
    "git": git,
    "sqlite-delete": sqlite("delete"),
    "sqlite-wal": sqlite("wal"),
    "numpy": numpy_memmap,
    "log": log_file,
}
LARGE: dict[str, Callable[[Path, Path], Check]] = {
    "hdf5": hdf5,
    "parquet": parquet,
    "safetensors": safetensors,
    "tensorboard": tensorboard,
    "fio": fio,
    "torch": torch_save,
}
