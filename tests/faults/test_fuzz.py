"""Odd inputs by the thousand (by the million with `-m soak`): named errors only, no crash, no hang.

Inputs are mutations of right ones, from a seed: a failure names its seed and is found again by it. Random bytes alone
would never pass the first check of any of these parsers.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountkit.cache.checked import CheckedFiles, Missing
from mountkit.cache.checksum import part_crcs
from mountkit.cache.content import content_id
from mountkit.cache.index import Placed
from mountkit.cache.segments import record_header
from mountkit.config import parse_duration, parse_mount_options, parse_share, parse_size
from mountkit.errors import BadAnswer, UsageError, from_json
from mountkit.ipc import ChannelClosed, _Assembler, encode
from mountkit.sources import BucketURL, parse_endpoint, parse_source
from mountkit.store.answers import Asked, refused
from mountkit.store.listing import AmbiguousPlusError, ListRequest, Plus, parse_page, parse_plus

QUICK, MILLION = 3_000, 1_000_000
LONGEST_INPUT_S = 5
LENGTHS = pytest.mark.parametrize(
    "count", [QUICK, pytest.param(MILLION, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)


@contextlib.contextmanager
def no_hang(seed: int) -> Iterator[None]:
    """Raises in the middle of an input that takes too long, and names it."""

    def too_long(number: int, frame: object) -> None:
        raise AssertionError(f"input {seed} took longer than {LONGEST_INPUT_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST_INPUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(chance: random.Random, right: bytes, words: tuple[bytes, ...]) -> bytes:
    """`right` after one to four changes: bytes flipped, cut out, doubled, moved; words put in."""
    data = bytearray(right)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        to = min(len(data), at + chance.choice((1, 2, 8, 100)))
        how = chance.randrange(6)
        if how == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif how == 1:
            del data[at:to]
        elif how == 2:
            data[at:at] = data[at:to] * chance.randint(1, 50)
        elif how == 3:
            data[at:to] = chance.choice(words)
        elif how == 4:
            data[at:at] = chance.choice(words)
        else:
            del data[at:]
    return bytes(data)


def fuzz(count: int, rights: tuple[bytes, ...], words: tuple[bytes, ...], take: Callable[[bytes], object]) -> None:
    for seed in range(count):
        chance = random.Random(seed)
        data = mutated(chance, chance.choice(rights), words)
        with no_hang(seed):
            try:
                take(data)
            except Exception as exc:
                raise AssertionError(f"seed {seed}: {data!r}") from exc


SOURCES = (
    b"bucket",
    b"bucket/a/prefix",
    b"s3://bucket/pre%20fix?region=eu-west-1&endpoint=http://127.0.0.1:9000&anonymous=1",
    b"s3a://b.u-c/x?endpoint_override=host:1&scheme=http&requester_pays=yes&profile=p",
)
SOURCE_WORDS = (
    b"://",
    b"?",
    b"&",
    b"=",
    b"%",
    b"%zz",
    b"@",
    b"[",
    b"]",
    b"::",
    b"\x00",
    b"\xff",
    b"//",
    b"..",
    b"#",
    b"1" * 400,
)


def _source(data: bytes) -> None:
    text = os.fsdecode(data)
    with contextlib.suppress(UsageError):
        found = parse_source(text)
        assert isinstance(found, BucketURL) and "@" not in found.endpoint
        assert not found.prefix or found.prefix.endswith(b"/")
        str(found)
    for parse in (parse_endpoint, parse_size, parse_duration, parse_share, parse_mount_options):
        with contextlib.suppress(UsageError):
            parse(text)


@LENGTHS
def test_sources_and_options(count: int) -> None:
    fuzz(
        count, (*SOURCES, b"50GB", b"1.5 TiB", b"60s", b"5%", b"ro,ttl=5s,x-a,endpoint=http://h"), SOURCE_WORDS, _source
    )


LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>d%2F</Prefix>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><KeyCount>3</KeyCount>
<ContinuationToken>t1</ContinuationToken><NextContinuationToken>t2</NextContinuationToken><Delimiter>%2F</Delimiter>
<Contents><Key>d%2Fa+b%25</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>
<Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>d%2Fc</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>123456789</Size></Contents>
<CommonPrefixes><Prefix>d%2Fe%2F</Prefix></CommonPrefixes></ListBucketResult>"""
ERROR = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no &amp; no</Message><Region>r</Region></Error>"
LISTING_WORDS = (
    *(b"<", b">", b"&", b"&#0;", b"&#x110000;", b"&amp;", b"<Key>", b"</Key>", b"<Size>", b"-1", b"\xff\xfe", b"\x00"),
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"9" * 5000, b"<a>" * 3000, b" xmlns=", b'"', b"%", b"%zz", b"%FF", b"+"),
    *(b"9999-99-99T00:00:00Z", b"0000-01-01", b"9999-12-31T23:59:59+00:00", b"encoding='utf-16'", b"encoding='x'"),
)
ASKED = Asked("b", "http://127.0.0.1:1", "r", "list")


def _listing(data: bytes) -> None:
    for plus in (Plus.SPACE, Plus.ITSELF, None):
        with contextlib.suppress(BadAnswer, AmbiguousPlusError):
            page = parse_page(data, ListRequest(b"d/", b"/", "t1"), plus)
            assert all(each.key.startswith(b"d/") and each.size >= 0 for each in page.objects)
            assert page.next_token != "t1"
    with contextlib.suppress(BadAnswer):
        parse_plus(data)
    assert str(refused(ASKED, 403, {"date": data[:30].decode("latin-1")}, data))


@LENGTHS
def test_listings_and_error_documents(count: int) -> None:
    fuzz(count, (LISTING, LISTING, ERROR), LISTING_WORDS, _listing)


FRAMES = (
    b"".join(encode({"op": "fetch", "id": 7, "object": 5, "offset": 0, "length": 131072}, b"payload")),
    b"".join(encode({"op": "hello"})) + b"".join(encode({"id": 7, "error": {"kind": "StoreError", "sentence": "s"}})),
    b"".join(encode({"fds": 1, "id": None})),
)
FRAME_WORDS = (
    *(struct.pack("<II", *lengths) for lengths in ((0, 0), (1, 0), (2**32 - 1, 0), (10, 2**32 - 1), (64 << 20, 1))),
    *(b"{}", b"[]", b"1e999", b'"fds":', b'"fds":-1', b'"fds":1e9', b'"fds":"x"', b'"fds":null', b"[" * 5000, b"\xff"),
)


def _frames(data: bytes) -> None:
    """What a peer may send, in pieces of any size."""
    assembler = _Assembler()
    chance = random.Random(len(data))
    with contextlib.suppress(ChannelClosed):
        while data:
            cut = chance.randint(1, len(data))
            assembler.feed(data[:cut], [])
            data = data[cut:]
            while (message := assembler.next()) is not None:
                assert isinstance(message.body, dict) and message.fds == []
                if isinstance(message.body.get("error"), dict):
                    str(from_json(message.body["error"]))


@LENGTHS
def test_control_messages(count: int) -> None:
    fuzz(count, FRAMES, FRAME_WORDS, _frames)


@LENGTHS
def test_segments(count: int, tmp_path: Path) -> None:
    """Whatever stands in a segment, and whatever the index says of it: the object's bytes or none."""
    (tmp_path / "segments").mkdir()
    path = tmp_path / "segments" / "0001.seg"
    objects = [
        (content_id(b"k%d" % n, '"e"', size), bytes(n % 251 for n in range(size)))
        for n, size in enumerate((1, 700, 3000))
    ]
    right, offsets = b"", []
    for content, data in objects:
        offsets.append(len(right))
        right += record_header(content, len(data), part_crcs(memoryview(data)).ljust(32, b"\0")) + data
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    path.write_bytes(right)
    files = CheckedFiles(root)
    chance = random.Random(count)
    served = 0
    try:
        for n in range(len(objects)):
            content, data = objects[n]
            crcs = part_crcs(memoryview(data)).ljust(32, b"\0")
            assert (
                files.read(content, len(data), 0, len(data), rows={0: Placed(1, offsets[n], 1, crcs)}, wait=True)
                == data
            )
        for seed in range(count):
            with open(path, "r+b") as file:
                spoilt = mutated(random.Random(seed), right, (b"mks1", bytes(60), b"\xff" * 8))
                file.write(spoilt)
                file.truncate()
            which = chance.randrange(len(objects))
            content, data = objects[which]
            offset = offsets[which] if seed % 3 else chance.choice((0, 1, chance.randrange(2 * len(right)), 2**62))
            crcs = (
                part_crcs(memoryview(data)).ljust(32, b"\0")
                if seed % 5
                else chance.randbytes(chance.choice((4, 8, 32)))
            )
            row = Placed(1 if seed % 7 else chance.choice((0, 2, 10**9)), offset, chance.choice((1, 255)), crcs)
            if 4 * row.parts.bit_length() > len(crcs):
                continue  # IndexView leaves such a row out
            size = len(data) if seed % 4 else chance.choice((len(data), 1, 10**6, 2**40))
            with no_hang(seed):
                found = files.read(content, size, 0, min(size, 4096), rows={0: row}, wait=True)
            if isinstance(found, bytes):
                served += 1
                assert found == data, f"seed {seed}"
            else:
                assert isinstance(found, Missing), f"seed {seed}"
        assert served, "no input was ever right: the test tests nothing"
    finally:
        files.close()
        os.close(root)
