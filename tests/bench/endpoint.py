"""The simulated endpoint: nginx, so that the mounters' own cost shows and not the server's.

Time to the first byte is added to every request (±20 %), bandwidth is limited for each connection, requests and bytes
are counted. nginx with its Lua module must be installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.servers import free_ports

_MODULES = Path("/usr/lib/nginx/modules")
_START_S = 90.0  # a million keys are read first


class NotInstalledError(Exception):
    """Something the benchmark needs is not on this machine."""


@dataclass(frozen=True)
class Counts:
    """What the endpoint was asked for, and the bytes of objects it sent."""

    get: int
    head: int
    list: int
    bytes: int


class Endpoint:
    """A context manager; `delay_ms` to the first byte, `rate` of one connection as nginx writes it (`90m`; 0: any)."""

    def __init__(self, data: Path, *, delay_ms: float, rate: str) -> None:
        self._data, self.delay_ms, self.rate = data.resolve(), delay_ms, rate

    def __enter__(self) -> Endpoint:
        if not shutil.which("nginx") or not (_MODULES / "ngx_http_lua_module.so").exists():
            raise NotInstalledError(
                "the endpoint is nginx with Lua: `apt-get install nginx-extras libnginx-mod-http-lua`"
            )
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._run = tempfile.TemporaryDirectory(prefix="mountkit-bench-")
        run = Path(self._run.name)
        buckets = ",".join(f'"{path.stem}"' for path in sorted(self._data.glob("*.keys")))
        values = {
            "ROOT": self._data,
            "RUN": run,
            "MODULES": _MODULES,
            "DELAY_MS": self.delay_ms,
            "RATE": self.rate,
            "PORT": port,
            "BUCKETS": buckets,
        }
        text = (Path(__file__).parent / "nginx.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        os.chmod(run, 0o755)  # nginx's worker is another user
        (run / "nginx.conf").write_text(text)
        command = ["nginx", "-c", str(run / "nginx.conf"), "-p", str(run), "-g", "daemon off;"]
        self._process = subprocess.Popen(command)
        self._wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._run.cleanup()

    def counts(self) -> Counts:
        with urllib.request.urlopen(f"{self.url}/__counts") as answer:
            return Counts(**json.load(answer))

    def reset(self) -> None:
        urllib.request.urlopen(f"{self.url}/__reset").close()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.reset()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise
                time.sleep(0.05)
            else:
                return
