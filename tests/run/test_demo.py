"""The parts of the demo: its pictures, its server, its readers. The whole story is told by `quickstart demo`."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from mountkit.demo import bucket
from mountkit.demo.readers import read_epoch


def test_every_picture_is_a_jpeg_with_bytes_of_its_own_and_the_same_each_time() -> None:
    made = dict(bucket.pictures(classes=3, per_class=20))
    assert sorted(made)[0] == "train/class00/img_00000.jpg"
    assert len(made) == len(set(made.values())) == 60
    for content in made.values():
        Image.open(io.BytesIO(content)).verify()
    assert made == dict(bucket.pictures(classes=3, per_class=20))


def test_the_flaws_are_one_torn_and_one_repeated_picture() -> None:
    flaws = dict(bucket.flawed())
    whole = next(bucket.pictures())[1]
    assert flaws == {bucket.TORN: whole[: len(whole) // 2], bucket.TWICE: whole}
    with pytest.raises(OSError, match="truncated"), Image.open(io.BytesIO(flaws[bucket.TORN])) as torn:
        torn.load()


def test_the_server_wants_its_own_credentials_and_is_gone_after_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "CLASSES", 1)
    server = bucket.start_server(str(tmp_path))
    try:
        client = server.client()
        client.put_object(Bucket=bucket.BUCKET, Key="a", Body=b"content")
        assert client.get_object(Bucket=bucket.BUCKET, Key="a")["Body"].read() == b"content"
        client.close()
        stranger = bucket.Server(server.process, server.endpoint, server.access_key, "wrong", server.log).client()
        with pytest.raises(Exception, match="SignatureDoesNotMatch"):
            stranger.get_object(Bucket=bucket.BUCKET, Key="a")
        stranger.close()
    finally:
        server.stop()
    assert server.process.returncode is not None


def test_readers_read_everything_once_and_name_what_is_wrong(tmp_path: Path) -> None:
    sums = {}
    for number in range(50):
        content = bytes((number + i) % 251 for i in range(1000))
        (tmp_path / f"{number}").write_bytes(content)
        sums[f"{number}"] = hashlib.sha256(content).hexdigest()
    read: list[int] = []
    epoch = read_epoch(str(tmp_path), sums, processes=2, seed=1, advance=read.append)
    assert (epoch.files, epoch.size_bytes, epoch.failures, sum(read)) == (50, 50_000, (), 50)
    (tmp_path / "7").write_bytes(b"other")
    (tmp_path / "8").unlink()
    epoch = read_epoch(str(tmp_path), sums, processes=2, seed=1, advance=read.append)
    assert sorted(epoch.failures) == ["7: wrong bytes", "8: error: No such file or directory"]
