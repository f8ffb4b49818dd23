"""What an engine says of its GPUs, and what it is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from mountkit.mountinfo import MountPoint
from mountkit.run import docker_spec, gpus
from mountkit.run.plan import RunDefaults, plan

_RUNC: dict[str, Any] = {"Runtimes": {"runc": {"path": "runc"}}, "DefaultRuntime": "runc"}
_NVIDIA = {"Runtimes": {**_RUNC["Runtimes"], "nvidia": {"path": "nvidia-container-runtime"}}}
_CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"} for name in ("0", "1", "all")]}
_POINTS: list[MountPoint] = []


@pytest.mark.parametrize(
    ("information", "kind"),
    [
        ({}, None),
        (_RUNC, None),
        ({**_RUNC, "Runtimes": None, "DiscoveredDevices": None}, None),
        ({**_RUNC, "DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.com/nic=eth0"}]}, None),
        (_NVIDIA, gpus.RUNTIME),
        ({**_RUNC, **_CDI}, "nvidia.com/gpu"),
        ({**_NVIDIA, **_CDI}, gpus.RUNTIME),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "amd.com/gpu=all"}]}, "amd.com/gpu"),
    ],
)
def test_an_engine_tells_by_its_runtimes_and_devices_whether_it_has_gpus(
    information: dict[str, Any], kind: str | None
) -> None:
    assert gpus.offered(information) == kind


@pytest.mark.parametrize(
    ("asked", "of_a_runtime", "of_cdi"),
    [
        ("all", {"Count": -1}, ["all"]),
        ("2", {"Count": 2}, ["0", "1"]),
        ("0,2", {"DeviceIDs": ["0", "2"]}, ["0", "2"]),
        ("device=GPU-3a,GPU-4b", {"DeviceIDs": ["GPU-3a", "GPU-4b"]}, ["GPU-3a", "GPU-4b"]),
    ],
)
def test_gpus_are_asked_for_as_the_engine_has_them(asked: str, of_a_runtime: dict[str, Any], of_cdi: list[str]) -> None:
    made = plan(RunDefaults(image="image", gpus=asked), run_id="1")
    (by_runtime,) = docker_spec.creation(made, _POINTS)["HostConfig"]["DeviceRequests"]
    assert by_runtime == {"Driver": "", "Capabilities": [["gpu"]], **of_a_runtime}
    (by_name,) = docker_spec.creation(made, _POINTS, gpu_kind="nvidia.com/gpu")["HostConfig"]["DeviceRequests"]
    assert by_name == {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={name}" for name in of_cdi]}


def test_without_gpus_none_are_asked_for() -> None:
    made = plan(RunDefaults(image="image"), run_id="1")
    assert "DeviceRequests" not in docker_spec.creation(made, _POINTS)["HostConfig"]
