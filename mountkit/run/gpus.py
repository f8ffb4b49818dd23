"""GPUs in the engine's words: whether it can give containers some, and how it must be asked.

Pure. A runtime of NVIDIA's takes requests by capability, as `docker run --gpus` makes them; an engine that only knows
GPUs as CDI devices (`nvidia.com/gpu=0`) wants them by name, until Docker 28 at least. The runtime is asked where both
are there, because a CDI file may be out of date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUNTIME = ""
"""GPUs are the engine's runtime's affair; any other word is the kind of CDI devices they are."""


def offered(information: Mapping[str, Any]) -> str | None:
    """How an engine that says this about itself gives GPUs to containers; None if it does not."""
    if "nvidia" in (information.get("Runtimes") or {}):
        return RUNTIME
    devices = [str(each.get("ID", "")) for each in information.get("DiscoveredDevices") or ()]
    kinds = [device.partition("=")[0] for device in devices]
    return next((kind for kind in kinds if kind.endswith("/gpu")), None)


def request(gpus: str, kind: str = RUNTIME) -> dict[str, Any]:
    """The DeviceRequest for `gpus`: all, a number, or ids."""
    named = [] if gpus == "all" or is_count(gpus) else gpus.removeprefix("device=").split(",")
    if kind != RUNTIME:
        names = named or (["all"] if gpus == "all" else [str(number) for number in range(int(gpus))])
        return {"Driver": "cdi", "DeviceIDs": [f"{kind}={name}" for name in names]}
    asked: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if named:
        return asked | {"DeviceIDs": named}
    return asked | {"Count": -1 if gpus == "all" else int(gpus)}


def is_count(gpus: str) -> bool:
    return gpus.isdigit()
