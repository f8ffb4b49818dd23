"""FUSE messages against the layouts of the kernel's header."""

import math
import stat
import struct

from mountkit.serve import messages
from mountkit.serve.messages import Attributes

FILE = Attributes(7 << 40, stat.S_IFREG | 0o444, 5000, 1_700_000_000_123_456_789, 1, 1000, 100)


def test_answers_carry_their_own_length_and_unique() -> None:
    for answer in (
        messages.entry(8, FILE, 1.5),
        messages.negative_entry(8, 1.5),
        messages.attributes(8, FILE, 1.5),
        messages.opened(8, 1, 2, 3),
        messages.failed(8, 5),
    ):
        length, _, unique = struct.unpack_from("<IiQ", answer)
        assert (length, unique) == (len(answer), 8)


def test_sizes_are_those_of_the_kernel_structures() -> None:
    assert len(messages.entry(1, FILE, 0)) == 16 + 128
    assert len(messages.negative_entry(1, 0)) == 16 + 128
    assert len(messages.attributes(1, FILE, 0)) == 16 + 104
    assert len(messages.opened(1, 0, 0)) == 16 + 16


def test_an_entry_says_inode_timeouts_and_attributes() -> None:
    answer = messages.entry(1, FILE, 1.5)
    nodeid, generation, entry_s, attr_s, entry_ns, attr_ns = struct.unpack_from("<QQQQII", answer, 16)
    assert (nodeid, generation, entry_s, attr_s) == (FILE.inode, 0, 1, 1)
    assert entry_ns == attr_ns == 500_000_000
    inode, size, blocks = struct.unpack_from("<QQQ", answer, 16 + 40)
    assert (inode, size, blocks) == (FILE.inode, 5000, 10)
    mode, links, uid, gid = struct.unpack_from("<IIII", answer, 16 + 40 + 48 + 12)
    assert (mode, links, uid, gid) == (FILE.mode, 1, 1000, 100)


def test_an_infinite_timeout_becomes_years() -> None:
    (seconds,) = struct.unpack_from("<Q", messages.attributes(1, FILE, math.inf), 16)
    assert seconds > 86400 * 365


def test_a_negative_entry_has_no_inode_but_a_timeout() -> None:
    nodeid, _, entry_s, _ = struct.unpack_from("<QQQQ", messages.negative_entry(1, 3), 16)
    assert (nodeid, entry_s) == (0, 3)


def test_a_name_without_attributes_says_inode_cookie_and_kind() -> None:
    record = messages.directory_name(b"abc", 9, 7, stat.S_IFDIR >> 12)
    assert struct.unpack_from("<QQII", record) == (7, 9, 3, stat.S_IFDIR >> 12)
    assert record[24:] == b"abc" + bytes(5)


def test_directory_records_are_padded_to_eight_bytes() -> None:
    for length in range(1, 20):
        record = messages.directory_entry(b"x" * length, 9, FILE, 1.0)
        assert len(record) % 8 == 0
        cookie, name_length, kind = struct.unpack_from("<QII", record, 128 + 8)
        assert (cookie, name_length, kind) == (9, length, stat.S_IFREG >> 12)
        assert record[128 + 24 : 128 + 24 + length] == b"x" * length


def test_the_init_reply_is_patched_for_passthrough_only_when_wanted() -> None:
    reply = struct.pack("<IiQ", 80, 0, 1) + struct.pack(
        "<IIIIHHIIHHII", 7, 38, 131072, 1, 12, 9, 1 << 20, 1, 256, 0, 0, 0
    )
    plain = struct.unpack_from("<IIIIHHIIHHII", messages.patched_init_reply(reply, passthrough=False), 16)
    native = struct.unpack_from("<IIIIHHIIHHII", messages.patched_init_reply(reply, passthrough=True), 16)
    assert plain[3] == 1
    assert plain[10] == 0
    assert native[3] & messages.INIT_EXT
    assert native[10] & messages.PASSTHROUGH_FLAG2
    assert native[11] == messages.MAX_STACK_DEPTH


def test_whether_the_kernel_offers_passthrough_is_read_from_its_init() -> None:
    header = struct.pack("<IIQQIIIHH", 104, 26, 2, 0, 0, 0, 0, 0, 0)
    old = header + struct.pack("<IIII", 7, 36, 131072, 0)
    new = header + struct.pack("<IIIII", 7, 41, 131072, messages.INIT_EXT, messages.PASSTHROUGH_FLAG2)
    assert not messages.kernel_offers_passthrough(old)
    assert messages.kernel_offers_passthrough(new)
