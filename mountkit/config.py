"""Settings of a mount: words in, frozen and valid values out.

Every option is defined once, in `OPTIONS`: its name, how its text becomes a value, its default and its words. The
command line and `-o` read them from there; nothing below this module parses text a user wrote.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mountkit.errors import UsageError
from mountkit.sources import BucketURL, parse_source

_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*(ms|s|m|h|d|w)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Bytes that `50GB`, `500 MiB` or `1048576` mean. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"`{text}` is no size", "write a number and a unit, like 500MB, 50GB or 1TiB")
    number, power, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[power.lower()])


def parse_duration(text: str) -> float:
    """Seconds that `60s`, `5m`, `0` or `indefinite` (infinity) mean. Raises UsageError."""
    if text.strip().lower() in ("indefinite", "inf", "infinite"):
        return math.inf
    match = _DURATION.fullmatch(text.strip().lower())
    if not match:
        raise UsageError(f"`{text}` is no duration", "write a number and a unit, like 60s, 5m, 2h, or `indefinite`")
    number, unit = match.groups()
    return float(number) * _SECONDS[unit or "s"]


def parse_share(text: str) -> float:
    """The share of 1 that `5%` means. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not match or not 0 <= float(match[1]) < 100:
        raise UsageError(f"`{text}` is no share of a disk", "write a percentage below 100, like 5%")
    return float(match[1]) / 100


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"`{text}` is no whole number", "write digits, like 1000") from None


def _octal(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise UsageError(f"`{text}` is no umask", "write up to three octal digits, like 022")
    return int(text, 8)


def _servers(text: str) -> int:
    number = _integer(text)
    if not 1 <= number <= 8:
        raise UsageError(f"{number} servers make no sense", "choose 1 to 8")
    return number


@dataclass(frozen=True, slots=True)
class Choice:
    """The parser of an option that is one of a few words."""

    allowed: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.allowed:
            words = self.allowed
            raise UsageError(f"`{text}` is not one of {', '.join(words)}", f"write {' or '.join(words)}")
        return text


def _sse(text: str) -> str:
    if not re.fullmatch(r"AES256|aws:kms(:.+)?", text):
        raise UsageError(f"`{text}` is no server-side encryption", "write AES256, aws:kms or aws:kms:KEY")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a mount: `parse` is None for a switch."""

    name: str
    parse: Callable[[str], Any] | None
    default: Any
    metavar: str
    words: str

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


OPTIONS: tuple[Option, ...] = (
    Option("driver", Choice(("auto", "fuse", "s3fs")), "auto", "NAME", "auto, fuse, or s3fs where fuse cannot be had."),
    Option("region", str, "", "NAME", "Region of the bucket (default: found by itself)."),
    Option("endpoint", str, "", "URL", "Server to talk to, like http://127.0.0.1:9000 (default: AWS)."),
    Option("profile", str, "", "NAME", "Profile of ~/.aws/config and ~/.aws/credentials to use."),
    Option("anonymous", None, False, "", "Send no credentials (public buckets)."),
    Option("requester-pays", None, False, "", "Agree to pay for the requests."),
    Option("passwd-file", str, "", "FILE", "Credentials in the form of s3fs (mode 0600)."),
    Option("cache", str, "", "DIR", "Keep cached data below DIR (default: $XDG_CACHE_HOME or ~/.cache)."),
    Option("cache-size", parse_size, parse_size("50GB"), "SIZE", "Use at most this much disk (default: 50GB)."),
    Option("cache-free", parse_share, 0.05, "SHARE", "Leave this share of the disk free (default: 5%)."),
    Option("ttl", parse_duration, 60.0, "TIME", "How old a listing may get: 60s, indefinite, 0 (default: 60s)."),
    Option("uid", _integer, -1, "UID", "Owner shown for all files (default: you)."),
    Option("gid", _integer, -1, "GID", "Group shown for all files (default: yours)."),
    Option("umask", _octal, 0o022, "MASK", "Permission bits taken from 0555 and 0444 (default: 022)."),
    Option("allow-other", None, False, "", "Let other users (and containers) read the mount."),
    Option("no-exec", None, False, "", "Let no file of the mount be executed."),
    Option("servers", _servers, 0, "N", "Processes that answer the kernel (default: by cores, 2 to 4)."),
    Option("verify", Choice(("once", "always")), "once", "WHEN", "Check cached bytes once, or at every read."),
    Option("no-sweep", None, False, "", "Fetch no files before they are opened, whatever the reading looks like."),
    Option("no-passthrough", None, False, "", "Serve cached files ourselves even where the kernel could."),
    Option("no-resend", None, False, "", "Act as on kernels before 6.9 (for tests)."),
    Option("writable", None, False, "", "Take files to write, too; they are uploaded when they are closed."),
    Option(
        "live", parse_duration, 30.0, "TIME", "Upload files that grow while they are open this often (default: 30s)."
    ),
    Option("drain-timeout", parse_duration, 900.0, "TIME", "How long unmounting waits for uploads (default: 15m)."),
    Option(
        "staging-size", parse_size, parse_size("100GB"), "SIZE", "Room for what is not yet uploaded (default: 100GB)."
    ),
    Option("durable-close", None, False, "", "Let close wait until the bucket has the file."),
    Option("no-clobber", None, False, "", "Never replace an object that somebody else wrote meanwhile."),
    Option("storage-class", str, "", "NAME", "Storage class of what is uploaded (default: the bucket's)."),
    Option("sse", _sse, "", "KIND", "Encryption of what is uploaded: AES256, aws:kms or aws:kms:KEY."),
    Option("data-budget", parse_duration, 60.0, "TIME", "How long a read may keep trying (default: 60s)."),
    Option("metadata-budget", parse_duration, 10.0, "TIME", "How long a lookup may keep trying (default: 10s)."),
)
_BY_NAME = {option.name: option for option in OPTIONS}
# mount(8) and fstab say these to every file system; they change nothing for a read-only mount of ours.
_IGNORED = {
    *("ro", "rw", "nosuid", "nodev", "exec", "defaults", "default_permissions", "async", "loud", "silent"),
    *(
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
    ),
    *("auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "comment"),
}
_OURS = {"noexec": "no-exec"}
"""Words of mount(8) for what has another name here; `user` and `users` in fstab imply this one."""


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """How a writable mount uploads."""

    live_s: float = 30.0
    drain_timeout_s: float = 900.0
    staging_size_bytes: int = 100 * 10**9
    durable_close: bool = False
    clobber: bool = True
    storage_class: str = ""
    sse: str = ""
    """`AES256`, `aws:kms` or `aws:kms:KEY`; empty for the bucket's default."""


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Everything the processes of one mount need to know, without any secret. JSON round trip: to_json, from_json."""

    source: BucketURL
    directory: str
    cache_directory: str
    """The user's choice; the state lies in a directory of its own below it (`places.state_directory`)."""
    identity: str
    """Names who asks (never a secret): data cached under one identity is not shown to another."""
    cache_size_bytes: int = 50 * 10**9
    cache_free_share: float = 0.05
    ttl_s: float = 60.0
    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    allow_other: bool = False
    executable: bool = True
    servers: int = 2
    verify_always: bool = False
    sweep: bool = True
    passthrough: bool = True
    resend: bool = True
    data_budget_s: float = 60.0
    metadata_budget_s: float = 10.0
    driver: str = "auto"
    outputs: OutputSettings | None = None
    """None: a read-only mount."""

    @property
    def state_name(self) -> str:
        """The name of this mount's state directory: the same source asked in the same name and manner shares it.

        s3fs cannot share: its name has the mount point in it, too.
        """
        source = self.source
        parts = [source.endpoint, source.bucket, source.prefix.hex(), self.identity]
        parts += ["requester-pays"] * source.requester_pays
        if self.driver == "s3fs":
            parts += [self.driver, self.directory]
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()

    def to_json(self) -> str:
        data = asdict(self)
        data["source"]["prefix"] = self.source.prefix.hex()
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> MountSettings:
        data = json.loads(text)
        data["source"]["prefix"] = bytes.fromhex(data["source"]["prefix"])
        source = BucketURL(**data.pop("source"))
        if data.get("outputs"):
            data["outputs"] = OutputSettings(**data["outputs"])
        return cls(source=source, **{f.name: data[f.name] for f in fields(cls) if f.name in data})


def option_values(texts: Mapping[str, str | bool | None]) -> dict[str, Any]:
    """Parsed values of the options given (by field or option name); the others' defaults. Raises UsageError."""
    values = {option.field: option.default for option in OPTIONS}
    for name, text in texts.items():
        if text is None:
            continue
        option = _BY_NAME.get(name.replace("_", "-"))
        if option is None:
            raise _unknown(name)
        values[option.field] = _value(option, text)
    return values


def _value(option: Option, text: str | bool) -> Any:
    if option.parse is None:
        return text if isinstance(text, bool) else _truth(option, text)
    try:
        return option.parse(str(text))
    except UsageError as exc:
        raise UsageError(f"--{option.name}: {exc.sentence}", exc.hint) from None


def _truth(option: Option, text: str) -> bool:
    if text.lower() in ("", "1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise UsageError(f"{option.name} is a switch, and `{text}` is neither true nor false", "name it without a value")


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name.replace("_", "-"), _BY_NAME, n=1)
    return UsageError(
        f"`{name}` is no option of a mount", f"did you mean `{near[0]}`?" if near else "see `mountkit mount --help`"
    )


def parse_mount_options(text: str) -> dict[str, str | bool | None]:
    """The options in a `-o a=b,c` list. Words every file system gets from mount(8) and `x-*` are passed over."""
    given: dict[str, str | bool | None] = {}
    for word in filter(None, text.split(",")):
        name, separator, value = word.partition("=")
        name = _OURS.get(name, name.replace("_", "-")) if name not in _IGNORED else name
        if name in _IGNORED or name.startswith("x-"):
            continue
        if name not in _BY_NAME:
            raise _unknown(name)
        given[name] = value if separator else True
    return given


def mount_settings(source: str, directory: str, **flags: str | bool | None) -> MountSettings:
    """The settings of mounting `source` at `directory` with the flags a user gave as text. Raises UsageError."""
    values = option_values(flags)
    said = parse_source(source)
    url = said.with_settings(
        region=values["region"],
        endpoint=values["endpoint"] or ("" if said.endpoint else _environment_endpoint()),
        profile=values["profile"],
        anonymous=values["anonymous"],
        requester_pays=values["requester_pays"],
    )
    return MountSettings(
        source=url,
        directory=os.path.abspath(directory),
        cache_directory=os.path.abspath(values["cache"] or _default_cache()),
        identity=_identity(url, values["passwd_file"]),
        cache_size_bytes=values["cache_size"],
        cache_free_share=values["cache_free"],
        ttl_s=values["ttl"],
        uid=os.getuid() if values["uid"] < 0 else values["uid"],
        gid=os.getgid() if values["gid"] < 0 else values["gid"],
        umask=values["umask"],
        allow_other=values["allow_other"],
        executable=not values["no_exec"],
        servers=1 if values["writable"] else values["servers"] or max(2, min(4, os.cpu_count() or 1)),
        verify_always=values["verify"] == "always",
        sweep=not values["no_sweep"],
        passthrough=not values["no_passthrough"] and values["verify"] != "always",
        resend=not values["no_resend"],
        data_budget_s=values["data_budget"],
        metadata_budget_s=values["metadata_budget"],
        driver=values["driver"],
        outputs=_output_settings(values) if values["writable"] else None,
    )


def _output_settings(values: dict[str, Any]) -> OutputSettings:
    return OutputSettings(
        live_s=values["live"],
        drain_timeout_s=values["drain_timeout"],
        staging_size_bytes=values["staging_size"],
        durable_close=values["durable_close"],
        clobber=not values["no_clobber"],
        storage_class=values["storage_class"],
        sse=values["sse"],
    )


def _environment_endpoint() -> str:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        if os.environ.get(name):
            return os.environ[name]
    return ""


def _default_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


def _identity(url: BucketURL, passwd_file: str) -> str:
    if url.anonymous:
        return "anonymous"
    if passwd_file:
        return f"passwd:{os.path.abspath(passwd_file)}"
    if url.profile or os.environ.get("AWS_PROFILE"):
        return f"profile:{url.profile or os.environ['AWS_PROFILE']}"
    return f"key:{os.environ.get('AWS_ACCESS_KEY_ID', 'chain')}"


# What a mover may know of the caller's environment. Everything else stays outside all our processes.
_SECRET_PREFIXES = ("AWS_",)
_NETWORK_NAMES = frozenset(
    (
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "https_proxy",
        "http_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HOME",
    )
)


AWS_CREDENTIAL, PASSWD_CREDENTIAL = "mountkit-aws-credentials", "mountkit-passwd"
"""What a unit of ours calls the credentials it has systemd load: a file as ~/.aws/credentials, one as s3fs has it."""


def handed_credential(name: str) -> str:
    """The file in which systemd hands this process the credential `name` (LoadCredential=); "" if it does not."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(directory, name)
    return path if directory and os.path.exists(path) else ""


def store_environment(passwd_credentials: tuple[str, str] | None = None) -> dict[str, str]:
    """The part of this environment that says who we are to the store and how to reach it: holds secrets.

    Credentials of a password file take the place of all others.
    """
    found = {k: v for k, v in os.environ.items() if k.startswith(_SECRET_PREFIXES) or k in _NETWORK_NAMES}
    handed = handed_credential(AWS_CREDENTIAL)
    if handed:
        found["AWS_SHARED_CREDENTIALS_FILE"] = handed
    if passwd_credentials:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_DEFAULT_PROFILE"):
            found.pop(name, None)
        found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"] = passwd_credentials
    return found
