"""A bucket in memory: passes the contract suite, and fails when told to.

store = MemoryStore()
info = store.put(b"a", content(1000))
store.fail_next(StoreUnavailable("down"))       # the next call of any kind raises it
store.fail_next(AccessDenied("no"), call="list_page")
store.truncate_next(10)                         # the next body breaks after 10 bytes
store.gate.clear(); …; store.gate.set()         # calls wait in between
store.lose_answer_of("complete_upload")         # the next one happens, and its answer is lost
store.on_write = lambda call, key: …            # called after every write that happened, under no lock
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mountkit.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnavailable, UploadMissing
from mountkit.store.api import MIN_PART_BYTES, Body, Data, ObjectInfo, Page, Part, Properties, UploadInfo
from mountkit.store.payload import CRC32C, Payload, composite
from mountkit.store.statistics import Counters, StoreStatistics


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that betray offsets: byte i is (seed + i) % 251."""
    cycle = bytes((seed + i) % 251 for i in range(251))
    return (cycle * (size // 251 + 1))[:size]


_KINDS = {"get": "get", "head": "head"} | dict.fromkeys(("list_page", "list_parts", "list_uploads"), "list")
_KINDS |= dict.fromkeys(("copy_object", "upload_part_copy"), "copy")
_KINDS |= dict.fromkeys(("delete_object", "delete_objects", "abort_upload"), "delete")


@dataclass
class _Held:
    info: ObjectInfo
    data: bytes


@dataclass
class _Upload:
    key: bytes
    properties: Properties
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


@dataclass
class MemoryStore:
    """Implements `mountkit.store.api.Store`."""

    chunk_bytes: int = 1 << 20
    versioned: bool = False
    """Old versions stay readable by their version_id; otherwise a replaced object is ObjectChanged."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Every call waits until it is set; it is from the start."""
    calls: list[tuple[str, bytes]] = field(default_factory=list)
    """(method, key or prefix) of every call that was made."""
    on_write: Callable[[str, bytes], object] = lambda call, key: None
    mtime_ns: int = 1_767_225_600_000_000_000
    """The server's clock."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._objects: dict[bytes, _Held] = {}
        self._versions: dict[tuple[bytes, str], _Held] = {}
        self._number = 0
        self._faults: list[tuple[str, StoreError]] = []
        self._truncate: list[int] = []
        self._lost_answers: list[str] = []
        self.uploads: dict[str, _Upload] = {}
        """Begun and neither completed nor aborted, by id."""
        self.encryption: dict[bytes, str] = {}
        """What the last write of each key asked for."""
        self._counts = Counters()
        self.gate.set()

    # ---- what a test does to the bucket

    def put(
        self, key: bytes, data: bytes, *, mtime_ns: int = 1_767_225_600_000_000_000, storage_class: str = "STANDARD"
    ) -> ObjectInfo:
        """Puts a new version under `key`."""
        with self._lock:
            self._number += 1
            version = f"v{self._number}" if self.versioned else ""
            info = ObjectInfo(key, len(data), f'"etag-{self._number}"', mtime_ns, storage_class, version)
            self._objects[key] = self._versions[key, version] = _Held(info, data)
            return info

    def delete(self, key: bytes) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def fail_next(self, error: StoreError, *, times: int = 1, call: str = "") -> None:
        """The next `times` calls (of the method `call`, if given) raise `error`."""
        self._faults += [(call, error)] * times

    def heal(self) -> None:
        """Forget the failures that are still to come."""
        self._faults.clear()

    def truncate_next(self, after_bytes: int) -> None:
        """The next body breaks off after so many bytes, as a lost connection would."""
        self._truncate.append(after_bytes)

    def lose_answer_of(self, call: str) -> None:
        """The next call of this method happens, and raises StoreUnavailable."""
        self._lost_answers.append(call)

    def data(self, key: bytes) -> bytes | None:
        """What is under `key`; None if nothing is."""
        with self._lock:
            held = self._objects.get(key)
        return None if held is None else held.data

    def keys(self) -> list[bytes]:
        with self._lock:
            return sorted(self._objects)

    # ---- the protocol

    def head(self, key: bytes) -> ObjectInfo:
        self._enter("head", key)
        with self._lock:
            held = self._objects.get(key)
        if held is None:
            raise ObjectMissing(f"there is no {key!r}")
        return held.info

    def get(self, info: ObjectInfo, offset: int, length: int) -> Body:
        assert offset >= 0 and length >= 1 and offset + length <= info.size, (info, offset, length)
        self._enter("get", info.key)
        with self._lock:
            held = self._versions.get((info.key, info.version_id)) if info.version_id else self._objects.get(info.key)
        if held is None:
            raise ObjectMissing(f"there is no {info.key!r}")
        if held.info.etag != info.etag or held.info.size != info.size:
            raise ObjectChanged(f"{info.key!r} holds another version")
        cut = self._truncate.pop(0) if self._truncate else None
        return _MemoryBody(held.info, held.data[offset : offset + length], self.chunk_bytes, cut, self._counts)

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        self._enter("list_page", prefix)
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix))
            rows: dict[bytes, ObjectInfo | None] = {}
            for key in keys:
                found = key.find(delimiter, len(prefix)) if delimiter else -1
                if found < 0:
                    rows[key] = self._listed(key)
                else:
                    rows[key[: found + len(delimiter)]] = None
        names = sorted(rows)
        start = bisect_right(names, bytes.fromhex(token)) if token else 0
        chosen = names[start : start + limit]
        objects = tuple(info for name in chosen if (info := rows[name]) is not None)
        prefixes = tuple(name for name in chosen if rows[name] is None)
        return Page(objects, prefixes, chosen[-1].hex() if start + limit < len(names) else "")

    def put_object(
        self,
        key: bytes,
        data: Data,
        properties: Properties | None = None,
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> ObjectInfo:
        self._enter("put_object", key)
        payload = Payload(data)
        held = _bytes(data)
        assert len(held) == payload.size
        etag = f'"{hashlib.md5(held).hexdigest()}"'
        checksum = f"{CRC32C}{payload.crc32c}"
        info = self._commit(key, held, etag, properties or Properties(), checksum, if_absent, if_match)
        self._happened("put_object", key)
        return info

    def copy_object(
        self, source: ObjectInfo, key: bytes, properties: Properties | None = None, *, keep_metadata: bool = False
    ) -> ObjectInfo:
        self._enter("copy_object", key)
        held = self._source(source)
        if properties is None or keep_metadata:
            asked = properties or Properties()
            properties = replace(
                asked, content_type=held.info.content_type, metadata=held.info.metadata, headers=held.info.headers
            )
        info = self._commit(key, held.data, held.info.etag, properties, held.info.checksum, False, "")
        self._happened("copy_object", key)
        return info

    def delete_object(self, key: bytes) -> None:
        self._enter("delete_object", key)
        self.delete(key)
        self._happened("delete_object", key)

    def delete_objects(self, keys: Sequence[bytes]) -> dict[bytes, StoreError]:
        assert 0 < len(keys) <= 1000
        self._enter("delete_objects", keys[0])
        for key in keys:
            self.delete(key)
        self._happened("delete_objects", keys[0])
        return {}

    def create_upload(self, key: bytes, properties: Properties | None = None) -> str:
        self._enter("create_upload", key)
        with self._lock:
            self._number += 1
            upload_id = f"upload-{self._number}"
            self.uploads[upload_id] = _Upload(key, properties or Properties())
        self._happened("create_upload", key)
        return upload_id

    def upload_part(self, key: bytes, upload_id: str, number: int, data: Data) -> Part:
        self._enter("upload_part", key)
        return self._add_part("upload_part", key, upload_id, number, _bytes(data))

    def upload_part_copy(
        self, key: bytes, upload_id: str, number: int, source: ObjectInfo, offset: int, length: int
    ) -> Part:
        self._enter("upload_part_copy", key)
        data = self._source(source).data[offset : offset + length]
        assert len(data) == length
        return self._add_part("upload_part_copy", key, upload_id, number, data)

    def complete_upload(
        self, key: bytes, upload_id: str, parts: Sequence[Part], *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        self._enter("complete_upload", key)
        with self._lock:
            upload = self._upload(key, upload_id)
            numbers = [part.number for part in parts]
            assert numbers == sorted(set(numbers)) and numbers
            if any(upload.parts.get(part.number, (None,))[0] != part for part in parts):
                raise UploadMissing("a part is not there")
            assert all(part.size >= MIN_PART_BYTES for part in parts[:-1]), "a part is too small"
            data = b"".join(upload.parts[number][1] for number in numbers)
            digest = hashlib.md5(b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)).hexdigest()
            info = self._commit(
                key, data, f'"{digest}-{len(parts)}"', upload.properties, composite(parts), if_absent, if_match
            )
            del self.uploads[upload_id]
        self._happened("complete_upload", key)
        return info

    def abort_upload(self, key: bytes, upload_id: str) -> None:
        self._enter("abort_upload", key)
        with self._lock:
            self.uploads.pop(upload_id, None)
        self._happened("abort_upload", key)

    def list_parts(self, key: bytes, upload_id: str) -> list[Part]:
        self._enter("list_parts", key)
        with self._lock:
            return [part for _, (part, _) in sorted(self._upload(key, upload_id).parts.items())]

    def list_uploads(self, prefix: bytes) -> list[UploadInfo]:
        self._enter("list_uploads", prefix)
        with self._lock:
            return [UploadInfo(up.key, ident) for ident, up in self.uploads.items() if up.key.startswith(prefix)]

    def _commit(
        self,
        key: bytes,
        data: bytes,
        etag: str,
        properties: Properties,
        checksum: str,
        if_absent: bool,
        if_match: str,
    ) -> ObjectInfo:
        with self._lock:
            there = self._objects.get(key)
            if (if_absent and there) or (if_match and (there is None or there.info.etag != if_match)):
                raise ObjectChanged(f"{key!r} holds another version than the one asked for")
            self._number += 1
            info = ObjectInfo(
                key,
                len(data),
                etag,
                self.mtime_ns,
                properties.storage_class or "STANDARD",
                f"v{self._number}" if self.versioned else "",
                checksum,
                properties.content_type,
                dict(properties.metadata),
                dict(properties.headers),
                properties.sse,
            )
            self._objects[key] = self._versions[key, info.version_id] = _Held(info, data)
            self.encryption[key] = properties.sse
            return info

    def _source(self, source: ObjectInfo) -> _Held:
        with self._lock:
            held = self._objects.get(source.key)
        if held is None:
            raise ObjectMissing(f"there is no {source.key!r}")
        if source.etag and held.info.etag != source.etag:
            raise ObjectChanged(f"{source.key!r} holds another version")
        return held

    def _upload(self, key: bytes, upload_id: str) -> _Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise UploadMissing(f"the upload of {key!r} is not there")
        return upload

    def _add_part(self, call: str, key: bytes, upload_id: str, number: int, data: bytes) -> Part:
        assert 1 <= number <= 10_000
        with self._lock:
            checksum = f"{CRC32C}{Payload(data).crc32c}"
            part = Part(number, f'"{hashlib.md5(data).hexdigest()}"', len(data), checksum)
            self._upload(key, upload_id).parts[number] = part, data
        self._happened(call, key)
        return part

    def _happened(self, call: str, key: bytes) -> None:
        self.on_write(call, key)
        if call in self._lost_answers:
            self._lost_answers.remove(call)
            raise StoreUnavailable(f"the answer to {call} was lost")

    def statistics(self) -> StoreStatistics:
        return self._counts.statistics()

    def close(self) -> None:
        pass

    # ----

    def _listed(self, key: bytes) -> ObjectInfo:
        info = self._objects[key].info
        return ObjectInfo(info.key, info.size, info.etag, info.mtime_ns, info.storage_class)

    def _enter(self, call: str, key: bytes) -> None:
        self.gate.wait()
        self._counts.add(_KINDS.get(call, "put"))
        with self._lock:
            self.calls.append((call, key))
            for number, (which, error) in enumerate(self._faults):
                if which in ("", call):
                    del self._faults[number]
                    raise error


def _bytes(data: Data) -> bytes:
    body = Payload(data).body()
    return body if isinstance(body, bytes) else b"".join(body)


class _MemoryBody:
    def __init__(self, info: ObjectInfo, data: bytes, chunk_bytes: int, cut: int | None, counts: Counters) -> None:
        self.info, self._data, self._chunk_bytes, self._cut, self._counts = info, data, chunk_bytes, cut, counts

    def chunks(self) -> Iterator[memoryview]:
        data = memoryview(self._data)[: self._cut]
        for start in range(0, len(data), self._chunk_bytes):
            piece = data[start : start + self._chunk_bytes]
            self._counts.add("bytes_received", len(piece))
            yield piece
        if len(data) < len(self._data):
            raise StoreUnavailable(f"the body broke off after {len(data)} of {len(self._data)} bytes")
