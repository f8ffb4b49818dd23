"""No value that knows a secret shows it: a repr reaches logs, tracebacks and failed assertions."""

from __future__ import annotations

import subprocess

import pytest

from mountkit.demo.bucket import Server
from mountkit.run.plan import ContainerPlan, RunDefaults
from mountkit.store.access import Access
from mountkit.systemd.units import File
from mountkit.yamlfile import Place, Word

SECRET = "s3cr3t-w0rd"
ENVIRONMENT = {"TOKEN": SECRET}


@pytest.mark.parametrize(
    "value",
    [
        File("/etc/mountkit/credentials/train", f"key = {SECRET}", secret=True),
        Access("b", "us-east-1", False, "https://s3.amazonaws.com", False, proxy=f"http://me:{SECRET}@proxy:3128"),
        Word("${TOKEN}", Place("mountkit.yaml", 1, 1), filled=SECRET),
        RunDefaults(environment=ENVIRONMENT),
        ContainerPlan(image="i", name="n", labels={}, environment=ENVIRONMENT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_repr_shows_no_secret(value: object) -> None:
    assert SECRET not in repr(value)


def test_a_server_of_the_demo_shows_no_secret() -> None:
    with subprocess.Popen(["true"]) as process:
        assert SECRET not in repr(Server(process, "http://127.0.0.1:1", "access", SECRET, "log"))
