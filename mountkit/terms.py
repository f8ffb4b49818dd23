"""Terms: what mounts that share a mover must have in common, because there is only one cache and one store client.

The first mount decides. Who leaves such a setting at its default follows; who asks for something else is refused.
Everything else is each mount's own: its servers tell the mover once a connection.
"""

from __future__ import annotations

from dataclasses import fields, replace

from mountkit.config import MountSettings
from mountkit.errors import MountError

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"), (1, "B"))


def _size(count: float) -> str:
    return next(f"{count / unit:g}{name}" for unit, name in _UNITS if count % unit == 0)


_COMMON = {
    "cache_size_bytes": ("--cache-size", _size),
    "cache_free_share": ("--cache-free", lambda share: f"{100 * share:g}%"),
    "data_budget_s": ("--data-budget", lambda seconds: f"{seconds:g}s"),
    "metadata_budget_s": ("--metadata-budget", lambda seconds: f"{seconds:g}s"),
}
_DEFAULTS = {each.name: each.default for each in fields(MountSettings)}


def followed(ours: MountSettings, running: MountSettings) -> MountSettings:
    """Our settings as they hold beside the mover that was started with `running`."""
    return replace(ours, **{name: getattr(running, name) for name in _COMMON})


def differences(ours: MountSettings, running: MountSettings) -> list[str]:
    """What the running mover keeps to that is not as we have it, as words of a command line."""
    return [_word(name, running) for name in _COMMON if getattr(ours, name) != getattr(running, name)]


def refuse_contradiction(ours: MountSettings, running: MountSettings) -> None:
    """Raises MountError where `ours` asks for something (other than a default) that the running mover does not do."""
    asked = [name for name in _COMMON if getattr(ours, name) not in (_DEFAULTS[name], getattr(running, name))]
    if asked:
        raise MountError(
            f"another mount of {ours.source} with the same cache has {_listed(running, asked)}, "
            f"this one cannot have {_listed(ours, asked)}",
            "say the same, or choose another --cache, or unmount the other one first",
        )


def _listed(settings: MountSettings, names: list[str]) -> str:
    return " and ".join(_word(name, settings) for name in names)


def _word(name: str, settings: MountSettings) -> str:
    option, shown = _COMMON[name]
    return f"{option} {shown(getattr(settings, name))}"
