"""GETs of whole small objects of one bucket, many at once on the caller's thread; see `multiget`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from mountkit.errors import CredentialsError
from mountkit.store.etags import made_up_etag, normal_etag, same_etag
from mountkit.store.keys import quoted
from mountkit.store.multiget import MultiGet, Whole
from mountkit.store.signed import USER_AGENT
from mountkit.store.sigv4 import GetSigner

if TYPE_CHECKING:
    from mountkit.store.access import Access, Wallet
    from mountkit.store.api import ObjectInfo
    from mountkit.store.lean import LeanHTTP
    from mountkit.store.statistics import Counters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Got:
    """All bytes of the version that was asked for; `version_id` as the server names it."""

    body: memoryview
    version_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No such luck: `get` would say why. `server_is_in_trouble`: others would fare no better."""

    server_is_in_trouble: bool


class ManyGets(Generic[T]):
    """All methods but `wake` belong to one thread."""

    def __init__(
        self, access: Access, wallet: Wallet, connections: LeanHTTP, counts: Counters, *, patience_s: float
    ) -> None:
        base = urlsplit(access.base)
        self._wallet, self._counts = wallet, counts
        self._path, self._host = base.path, base.netloc
        self._signer = GetSigner(base.netloc, access.region, requester_pays=access.requester_pays)
        self._requester_pays = access.requester_pays
        self._gets: MultiGet[tuple[T, ObjectInfo]] = MultiGet(connections.connect, patience_s=patience_s)
        self.wake = self._gets.wake

    def __repr__(self) -> str:
        return f"<ManyGets {self._gets!r}>"

    def start(self, tag: T, info: ObjectInfo) -> bool:
        """Begins to get all of this version; False where that is not for us."""
        if info.version_id or info.etag == made_up_etag(info.mtime_ns, info.size):
            return False
        if not (info.etag.isascii() and info.etag.isprintable()):  # a listing may say anything; this is no header
            return False
        path = f"{self._path}/{quoted(info.key)}"
        headers = {"If-Match": info.etag}
        if self._wallet.signs:
            try:
                headers |= self._signer.headers(self._wallet.current(), path)
            except CredentialsError:
                return False
        elif self._requester_pays:
            headers["x-amz-request-payer"] = "requester"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: {USER_AGENT}\r\n{lines}\r\n"
        self._counts.add("get")
        self._gets.start((tag, info), request.encode("latin-1"), info.size)
        return True

    def wait(self) -> Iterator[tuple[T, Got | Failed]]:
        """What has ended, once something happens; nothing, now and then."""
        for (tag, info), whole in self._gets.wait():
            yield tag, self._judged(info, whole)

    def close(self) -> None:
        self._gets.close()

    def _judged(self, info: ObjectInfo, whole: Whole | None) -> Got | Failed:
        if whole is None:
            return Failed(server_is_in_trouble=True)
        etag = whole.headers.get("etag")
        if whole.status != 200 or not etag or not same_etag(normal_etag(etag, 0, info.size), info.etag):
            return Failed(server_is_in_trouble=whole.status >= 500 or whole.status == 429)
        self._counts.add("bytes_received", info.size)
        return Got(whole.body, whole.headers.get("x-amz-version-id", ""))
