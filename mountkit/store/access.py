"""Access: with which credentials, at which endpoint, in which region and through which proxy a bucket is reached.

boto3's whole chain is asked (environment, files, SSO, roles, web identity, process, container, instance). Nothing here
sends a request to the bucket; resolving credentials may ask a metadata or token service.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import threading
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import botocore.httpsession
from botocore.config import Config
from botocore.credentials import Credentials

from mountkit.errors import CredentialsError, UsageError
from mountkit.sources import BucketURL, parse_endpoint
from mountkit.store.answers import shortened

_AWS_HOST = re.compile(r"s3[.-](?!.*vpce).*amazonaws\.com(\.cn)?|s3\.amazonaws\.com")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_LOOKED = "AWS_ACCESS_KEY_ID, the files in ~/.aws, SSO, web identity, container and instance roles"


class Wallet:
    """Credentials that renew themselves as botocore does, and can be looked up anew. Safe for threads."""

    def __init__(self, url: BucketURL, keys: tuple[str, str] | None = None) -> None:
        self._url, self._keys = url, keys
        self._lock = threading.Lock()
        self._credentials = self._look_up()
        self._shown = "" if self._credentials is None else "?"

    def __repr__(self) -> str:
        return "<Wallet>"

    @property
    def signs(self) -> bool:
        return self._credentials is not None

    @property
    def shown(self) -> str:
        """The access key id as an error may show it; "" for unsigned requests, "?" before the first request."""
        return self._shown

    def current(self) -> Any:
        """botocore's frozen credentials (access_key, secret_key, token), renewed if need be; may block. Raises
        CredentialsError."""
        assert self._credentials is not None
        with _named_errors(self._url):
            found = self._credentials.get_frozen_credentials()
        self._shown = shortened(found.access_key)
        return found

    def look_again(self) -> bool:
        """Asks the whole chain anew; whether that gave other credentials than before."""
        with self._lock:
            if self._credentials is None or self._keys:
                return False
            found = self._look_up()
            with _named_errors(self._url):
                new = found.get_frozen_credentials() if found else None
                old = self._credentials.get_frozen_credentials()
            self._credentials = found
            return bool(new != old)

    def _look_up(self) -> Any:
        if self._url.anonymous:
            return None
        if self._keys:
            return Credentials(*self._keys)
        with _named_errors(self._url):
            credentials = session_for(self._url).get_credentials()
        if credentials is None:
            raise CredentialsError(
                f"no credentials were found: looked at {_LOOKED}",
                "run `aws configure` or `aws sso login`, name a --profile, or use --anonymous for a public bucket",
            )
        return credentials


class _named_errors:  # noqa: N801 - reads as a statement
    """Turns botocore's errors about credentials and configuration into ours."""

    def __init__(self, url: BucketURL) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, botocore.exceptions.ProfileNotFound):
            name = self._url.profile or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE", "")
            raise CredentialsError(
                f"there is no profile `{name}` in the AWS configuration", "`aws configure list-profiles` shows them"
            ) from exc
        if isinstance(exc, botocore.exceptions.PartialCredentialsError):
            raise CredentialsError(
                "the credentials are incomplete: an access key without its secret, or the reverse", "give both"
            ) from exc
        if isinstance(exc, botocore.exceptions.ClientError):
            code = exc.response.get("Error", {}).get("Code", "?")
            raise CredentialsError(
                f"{exc.operation_name} gave no credentials: {code}", "check the role and who may assume it"
            ) from exc
        if isinstance(exc, botocore.exceptions.SSOError | botocore.exceptions.TokenRetrievalError):
            raise CredentialsError("the SSO login has expired, or there is none", "run `aws sso login`") from exc
        if isinstance(exc, botocore.exceptions.BotoCoreError):
            raise CredentialsError(
                f"the credentials cannot be had: {type(exc).__name__}", "check ~/.aws/config and the AWS_* variables"
            ) from exc


def session_for(url: BucketURL) -> boto3.Session:
    with _named_errors(url):
        return boto3.Session(profile_name=url.profile or None)


@dataclass(frozen=True, slots=True)
class Access:
    """The way to a bucket. The credentials are not part of it."""

    bucket: str
    region: str
    region_is_explicit: bool
    endpoint: str
    """`scheme://host[:port]`, of the service, not of the bucket."""
    custom_endpoint: bool
    requester_pays: bool = False
    proxy: str = field(default="", repr=False)
    """URL of the proxy, may hold a password; "" for a direct way."""
    ca_bundle: str = ""
    """PEM file that is trusted in addition to the system's roots."""

    @property
    def path_style(self) -> bool:
        return self.custom_endpoint or not _DNS_BUCKET.fullmatch(self.bucket)

    @property
    def base(self) -> str:
        """The URL of the bucket, without a slash at the end."""
        scheme, _, host = self.endpoint.partition("://")
        return f"{self.endpoint}/{self.bucket}" if self.path_style else f"{scheme}://{self.bucket}.{host}"

    @property
    def is_tls(self) -> bool:
        return self.endpoint.startswith("https://")

    def ca_pem(self) -> bytes | None:
        """What obstore must trust in addition: the user's bundle, or certifi's where the system has no roots."""
        default = ssl.get_default_verify_paths()
        if self.ca_bundle:
            return Path(self.ca_bundle).read_bytes()
        if default.cafile or default.capath:
            return None
        return Path(botocore.httpsession.where()).read_bytes()

    def tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self.ca_bundle:
            context.load_verify_locations(cafile=self.ca_bundle)
        elif not context.cert_store_stats()["x509_ca"] and self.ca_pem():
            context.load_verify_locations(cafile=botocore.httpsession.where())
        return context

    def in_region(self, url: BucketURL, region: str) -> Access:
        """The same bucket, now known to be in `region`."""
        endpoint = self.endpoint if self.custom_endpoint else _aws_endpoint(url, region)
        return replace(self, region=region, endpoint=endpoint)


def find_access(url: BucketURL, region: str = "") -> Access:
    """The way to `url` by what the URL, the environment and the profile say, or to `region` where that is known.

    Raises UsageError, CredentialsError.
    """
    if url.bucket.endswith("--x-s3"):
        raise UsageError(f"`{url.bucket}` is a directory bucket (S3 Express), which mountkit cannot mount yet")
    session = session_for(url)
    region = region or url.region or os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    endpoint = url.endpoint or _aws_endpoint(url, region)
    custom = bool(url.endpoint) or not _AWS_HOST.fullmatch(urlsplit(endpoint).hostname or "")
    if not custom and (mlflow := os.environ.get("MLFLOW_S3_ENDPOINT_URL")):
        endpoint, custom = parse_endpoint(mlflow), True
    bundle = session._session.get_config_variable("ca_bundle") or ""
    if bundle and not os.path.isfile(bundle):
        raise UsageError(f"the certificate file `{bundle}` cannot be read", "check AWS_CA_BUNDLE")
    if bundle:
        try:
            ssl.create_default_context().load_verify_locations(cafile=bundle)
        except OSError as exc:  # ssl.SSLError is one
            raise UsageError(f"the certificate file `{bundle}` holds no certificate", "check AWS_CA_BUNDLE") from exc
    access = Access(url.bucket, region, bool(url.region), endpoint, custom, url.requester_pays, ca_bundle=bundle)
    return replace(access, proxy=_proxy_for(access.base))


def _aws_endpoint(url: BucketURL, region: str) -> str:
    """What botocore would ask: knows partitions, FIPS and dual stack, AWS_ENDPOINT_URL[_S3] and the profile's own."""
    with _named_errors(url):
        # Fixed keys: making a client must not go looking for credentials.
        client = session_for(url).client(
            "s3",
            region_name=region,
            aws_access_key_id="x",
            aws_secret_access_key="x",  # noqa: S106
            config=Config(s3={"us_east_1_regional_endpoint": "regional"}),
        )
        found = str(client.meta.endpoint_url)
        client.close()
    return parse_endpoint(found)


def _proxy_for(base: str) -> str:
    parts = urlsplit(base)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.netloc) or _is_loopback(host):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
