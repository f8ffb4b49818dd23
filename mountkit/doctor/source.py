"""The source, step by step: name, connection, TLS, clock, credentials, bucket, listing, reading.

A process of its own, started with a sealed descriptor that holds the caller's store environment, as the mover is: the
only part of doctor that meets credentials or the network. It writes lines as JSON and ends with the first fault. What
it says of credentials is where they come from and the ends of the access key id.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import ssl
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mountkit import ipc, processes
from mountkit.config import MountSettings
from mountkit.doctor.line import Line, Section
from mountkit.errors import AccessDenied, CredentialsError, MountkitError, ObjectChanged, StoreError, StoreUnavailable
from mountkit.report import size
from mountkit.sources import BucketURL
from mountkit.store import answers, s3
from mountkit.store.access import Access, Wallet, find_access, session_for
from mountkit.store.api import ObjectInfo, Page
from mountkit.store.signed import SignedHTTP, Timeouts, let_go

_TIMEOUTS = Timeouts(3.0, 10.0, 30.0, 10.0, 30.0)
_SKEW_S, _REFUSED_SKEW_S = 60.0, 900.0
_SHORT_READ_BYTES = 8 << 20
_LATENCY_TRIES = 5
_PROBE = b"mountkit doctor was here and should have taken this away\n"
_SOON_S = 14 * 86400
_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes that need a restore; GLACIER_IR is read like any other."""
_PROVIDERS = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the credentials file (~/.aws/credentials)",
    "custom-process": "the credential_process of the profile",
    "config-file": "the configuration file (~/.aws/config)",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a role by web identity",
    "sso": "an SSO login",
    "container-role": "the container's role",
    "iam-role": "the instance's role",
}


class Examination:
    """One source. Each step is a method that yields its lines, and raises what ends the examination."""

    def __init__(self, url: BucketURL, *, passwd_file: str = "", writable: bool = False) -> None:
        self._url, self._passwd_file, self._writable = url, passwd_file, writable
        self._objects: tuple[ObjectInfo, ...] = ()
        self._section = Section(f"source {url}")
        self._name = "source"

    def lines(self) -> Iterator[Line]:
        """Every line up to the first fault."""
        try:
            yield from self._credentials()
            yield from self._way()
            yield from self._bucket()
            yield from self._listing()
            yield from self._reading()
            if self._writable:
                yield from self._writing()
        except MountkitError as exc:
            yield self._section.fault(self._name, exc)

    # ---- steps -------------------------------------------------------------------------------------------------
    def _credentials(self) -> Iterator[Line]:
        self._name = "credentials"
        if self._url.anonymous:
            self._wallet = Wallet(self._url)
            yield self._section.fine("credentials", "none are sent: --anonymous")
            return
        self._wallet = Wallet(self._url)
        self._wallet.current()
        yield self._section.fine("credentials", f"access key {self._wallet.shown} from {self._provider()}")

    def _provider(self) -> str:
        if self._passwd_file:
            return f"the password file {self._passwd_file}"
        found = session_for(self._url).get_credentials()
        method = str(getattr(found, "method", ""))
        profile = self._url.profile or os.environ.get("AWS_PROFILE", "")
        named = f", profile {profile}" if profile and method != "env" else ""
        return _PROVIDERS.get(method, method or "somewhere") + named

    def _way(self) -> Iterator[Line]:
        """The machine that is asked: is it there, and who does it say it is?"""
        self._name = "endpoint"
        self._access = access = find_access(self._url)
        yield self._section.fine("endpoint", f"{access.base}, {_region_words(access, self._url)}")
        parts = urlsplit(access.base)
        host, port = parts.hostname or "", parts.port or (443 if access.is_tls else 80)
        if access.proxy:
            proxy = urlsplit(access.proxy)
            shown = f"{proxy.scheme}://{proxy.hostname}{f':{proxy.port}' if proxy.port else ''}"
            yield self._section.fine("proxy", f"{shown}, from the environment; it resolves names and connects for us")
            return
        wire = SignedHTTP(access, self._wallet, _TIMEOUTS)
        asked = wire.asked("reach")
        self._name = "name"
        try:
            found = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
            yield self._section.fine("name", f"{host} is {', '.join(found[:3])}{' …' if len(found) > 3 else ''}")
            self._name, started = "connection", time.monotonic()
            with socket.create_connection((host, port), timeout=_TIMEOUTS.connect_s) as raw:
                yield self._section.fine("connection", f"port {port} answers in {_ms(time.monotonic() - started)}")
                self._name = "TLS"
                if access.is_tls:
                    with access.tls_context().wrap_socket(raw, server_hostname=host) as connection:
                        yield self._certificate(connection)
                else:
                    yield self._section.fine("TLS", "none: the endpoint is http://")
        except TimeoutError as exc:
            raise StoreUnavailable(
                f"{access.endpoint} does not answer: no connection in time", "a firewall may drop the packets"
            ) from exc
        except OSError as exc:
            raise answers.unreached(asked, exc) from exc

    def _certificate(self, connection: ssl.SSLSocket) -> Line:
        found = connection.getpeercert() or {}
        until = float(ssl.cert_time_to_seconds(str(found["notAfter"]))) if "notAfter" in found else 0.0
        words = f"{connection.version()}, the certificate is good until {datetime.fromtimestamp(until, UTC):%Y-%m-%d}"
        if until - time.time() < _SOON_S:
            return self._section.note("TLS", words, "the server's owner should renew it")
        return self._section.fine("TLS", words)

    def _bucket(self) -> Iterator[Line]:
        self._name = "clock"
        wire = SignedHTTP(self._access, self._wallet, _TIMEOUTS)
        asked = wire.asked("reach")
        response = wire.send("HEAD", asked)
        let_go(response)
        yield from self._clock(response.headers.get("date"))
        self._name = "bucket"
        self._store = s3.connect(self._url, connect_timeout_s=_TIMEOUTS.connect_s)
        region = self._store.access.region
        followed = "" if region == self._access.region else f", and not in {self._access.region}: mountkit follows"
        yield self._section.fine("bucket", f"{self._url.bucket} is there, in {region}{followed}")

    def _clock(self, date: str | None) -> Iterator[Line]:
        try:
            off = time.time() - parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            yield self._section.note("clock", "the server does not tell its time", "is the endpoint an S3 server?")
            return
        words = f"{_span(abs(off))} {'ahead of' if off > 0 else 'behind'} the server's"
        if abs(off) >= _REFUSED_SKEW_S:
            raise CredentialsError(f"this machine's clock is {words}: signatures are refused", "set the clock (NTP)")
        if abs(off) >= _SKEW_S:
            yield self._section.note("clock", f"this machine's clock is {words}", "set the clock (NTP)")
        else:
            yield self._section.fine("clock", "agrees with the server's")

    def _listing(self) -> Iterator[Line]:
        self._name = "list"
        prefix, started = self._url.prefix, time.monotonic()
        page = self._store.list_page(prefix)
        seconds = time.monotonic() - started
        shown = [name[len(prefix) :].decode("utf-8", "replace") for name in (*page.prefixes, *_keys(page))][:3]
        if not shown:
            yield self._section.note("list", f"there is nothing below {self._url}", "check the prefix; names have case")
            return
        more = " …" if page.next_token or len(page.objects) + len(page.prefixes) > len(shown) else ""
        yield self._section.fine("list", f"{', '.join(shown)}{more} ({_ms(seconds)})")
        if not any(info.size for info in page.objects):
            page = self._store.list_page(prefix, delimiter=b"")
        archived = [info for info in page.objects if info.storage_class in _ARCHIVES]
        if archived:
            yield self._section.note(
                "archived",
                f"{len(archived)} of the first {len(page.objects):,} objects are archived, like {_shown(archived[0])}",
                "reading them fails with EIO: restore them first (aws s3api restore-object)",
            )
        self._objects = page.objects

    def _reading(self) -> Iterator[Line]:
        self._name = "read"
        readable = [info for info in self._objects if info.size and info.storage_class not in _ARCHIVES]
        if not readable:
            yield self._section.note("read", "nothing was found to read", "put an object there and ask again")
            return
        chosen = max(readable, key=lambda info: (min(info.size, _SHORT_READ_BYTES), -info.size))
        found = self._store.head(chosen.key)
        started = time.monotonic()
        count = sum(len(chunk) for chunk in self._store.get(found, 0, min(found.size, _SHORT_READ_BYTES)).chunks())
        seconds = time.monotonic() - started
        yield self._section.fine(
            "read", f"{size(count)} of {_shown(found)} in {_ms(seconds)}: {size(count / seconds)}/s, one connection"
        )
        times = []
        for _ in range(_LATENCY_TRIES):
            started = time.monotonic()
            next(iter(self._store.get(found, 0, 1).chunks()))
            times.append(time.monotonic() - started)
        yield self._section.fine("latency", f"{_ms(statistics.median(times))} to the first byte")
        yield self._conditions(found)
        yield self._versions(found)

    def _conditions(self, found: ObjectInfo) -> Line:
        """Whether a GET of another version is refused, which is how an object never mixes with its successor."""
        other = found._replace(etag='"00000000000000000000000000000000"', version_id="")
        try:
            next(iter(self._store.get(other, 0, 1).chunks()))
        except ObjectChanged:
            return self._section.fine("conditions", "another version of an object is told apart")
        except StoreError as exc:
            return self._section.weighed("conditions", exc, stops=False)
        return self._section.note(
            "conditions", "the server gives one version for another", "objects that are replaced in use may be mixed"
        )

    def _writing(self) -> Iterator[Line]:
        """Puts probe objects and takes them away again, also when a step in between is refused."""
        self._name = "put"
        key = self._url.prefix + f".mountkit-doctor-{secrets.token_hex(8)}".encode()
        started = time.monotonic()
        self._store.put_object(key, _PROBE)
        try:
            yield self._section.fine("put", f"an object of {len(_PROBE)} bytes in {_ms(time.monotonic() - started)}")
            yield self._exclusive(key)
            yield from self._multipart(key)
        except BaseException:
            with contextlib.suppress(StoreError):
                self._store.delete_object(key)
            raise
        self._name = "delete"
        self._store.delete_object(key)
        yield self._section.fine("delete", "the probe is gone again")

    def _exclusive(self, key: bytes) -> Line:
        try:
            self._store.put_object(key, _PROBE, if_absent=True)
        except ObjectChanged:
            return self._section.fine("exclusive put", "an object that is there already is not replaced (--no-clobber)")
        except StoreError as exc:
            return self._section.weighed("exclusive put", exc, stops=False)
        return self._section.note(
            "exclusive put", "the server replaces an object it was told not to", "--no-clobber cannot work with it"
        )

    def _multipart(self, key: bytes) -> Iterator[Line]:
        """What a file of more than a few megabytes needs."""
        self._name, started = "multipart", time.monotonic()
        upload = self._store.create_upload(key)
        try:
            part = self._store.upload_part(key, upload, 1, _PROBE)
            self._store.complete_upload(key, upload, [part])
        except StoreError:
            with contextlib.suppress(StoreError):
                self._store.abort_upload(key, upload)
            raise
        yield self._section.fine("multipart", f"an upload of one part in {_ms(time.monotonic() - started)}")

    def _versions(self, found: ObjectInfo) -> Line:
        if found.version_id in ("", "null"):
            text = "none are kept: a file that is replaced while it is open gives ESTALE"
            return self._section.fine("versions", text)
        try:
            next(iter(self._store.get(found, 0, 1).chunks()))
        except AccessDenied as exc:
            hint = "s3:GetObjectVersion would let open files go on reading the version they began with"
            return self._section.note("versions", exc.sentence, hint)
        return self._section.fine("versions", "are kept: open files go on reading the version they began with")


def _keys(page: Page) -> Iterator[bytes]:
    return (info.key for info in page.objects)


def _region_words(access: Access, url: BucketURL) -> str:
    if url.region:
        return f"region {url.region} as you say"
    return f"region {access.region} to begin with"


def _shown(info: ObjectInfo) -> str:
    return info.key.decode("utf-8", "backslashreplace")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _asked_for(settings: MountSettings, body: dict[str, Any]) -> Examination:
    return Examination(settings.source, passwd_file=body["passwd_file"], writable=body["writable"])


def main() -> None:
    """Entry of the process: `python -I -m mountkit.doctor.source CHANNEL_FD`. See `examine`."""
    os.chdir("/")
    processes.hide()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        start = ipc.receive_one(channel)
        processes.take_environment(start.fds[0])
        settings = MountSettings.from_json(start.body["settings"])
        for line in _asked_for(settings, start.body).lines():
            channel.sendall(json.dumps(line.to_json()).encode() + b"\n")


if __name__ == "__main__":
    main()
