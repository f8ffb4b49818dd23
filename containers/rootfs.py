"""Root file systems of this very machine's files, for images that come from no registry.

Programs come with the libraries `ldd` names; a Python comes as the one that runs this, with its standard library and
the packages asked for out of its environment. Nothing is downloaded. What an image is made of is hashed into a label,
so that a second call finds it there and does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mountkit.errors import HostError
from mountkit.run.docker_engine import DockerEngine

LABEL = "mountkit.recipe"
PYTHON = "/usr/bin/python3"
SITE = "/opt/site"
TOOLS = ("sh", "ls", "cat", "env", "id", "sleep", "true", "wc")
_UNNEEDED = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
_UNNEEDED |= {"__pycache__", "lib2to3", "pydoc_data"}


class RootFileSystem:
    """A tar file that becomes an image; a path is added once, whatever asks for it."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._paths: set[str] = set()
        for directory, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("usr/bin", 0o755)):
            self._directory(directory, mode)
        self.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        self.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")

    def text(self, path: str, text: str, mode: int = 0o644) -> None:
        self._content(path, text.encode(), mode)

    def program(self, name: str, target: str = "") -> None:
        """A program of this machine with its libraries. Raises HostError where it is missing."""
        found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if not found:
            raise HostError(f"this machine has no `{name}`, which the image is made of", "install it")
        self.binary(found, target or f"/bin/{name}")

    def binary(self, path: str, target: str) -> None:
        self._content(target, Path(path).read_bytes(), 0o755)
        self._libraries(path)

    def python(self, packages: Iterable[str]) -> None:
        """The Python that runs this, as /usr/bin/python3, with `packages` of its environment in SITE."""
        home = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
        self.binary(os.path.realpath(sys.executable), PYTHON)
        self.tree(sysconfig.get_path("stdlib"), home)
        for package in packages:
            self._package(package)

    def tree(self, source: str, target: str) -> None:
        """Everything below `source` but tests, caches and what only people at a screen need."""
        for directory, names, files in os.walk(source):
            names[:] = [name for name in names if name not in _UNNEEDED and not name.startswith("config-")]
            below = os.path.join(target, os.path.relpath(directory, source)).replace("/.", "/").rstrip("/")
            for name in files:
                path = os.path.join(directory, name)
                if name.endswith((".pyc", ".a", ".pyi")) or not os.path.isfile(path):
                    continue
                self._content(f"{below}/{name}", Path(path).read_bytes(), os.stat(path).st_mode & 0o755)
                if ".so" in name:
                    self._libraries(path, own=source)

    def _package(self, name: str) -> None:
        found = importlib.util.find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise HostError(f"this Python has no package `{name}`, which the image is made of", "pip install it")
        place = found.submodule_search_locations[0]
        self.tree(place, f"{SITE}/{name}")
        for libraries in Path(place).parent.glob("*.libs"):  # where wheels keep the libraries they bring
            if libraries.name.lower().startswith((name.lower(), {"PIL": "pillow"}.get(name, name))):
                self.tree(str(libraries), f"{SITE}/{libraries.name}")

    def _libraries(self, program: str, own: str = "\0") -> None:
        """What `program` is linked with; a wheel's own libraries lie beside it and are found from there."""
        done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", done.stdout):
            if ".libs/" in library or library.startswith(own):
                continue
            self._content(library, Path(library).read_bytes(), 0o755)

    def _directory(self, path: str, mode: int) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)

    def _content(self, path: str, content: bytes, mode: int) -> None:
        name = os.path.normpath(path).lstrip("/")
        if name in self._paths:
            return
        self._paths.add(name)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), mode
        self._tar.addfile(entry, io.BytesIO(content))


class Recipe:
    """An image to be: its parts, and what it says about itself."""

    def __init__(self, image: str, parts: Sequence[Path], packages: Sequence[str], changes: Sequence[str]) -> None:
        self.image = image
        self._parts = [path for part in parts for path in ([part] if part.is_file() else sorted(part.rglob("*.py")))]
        self._packages = packages
        self._changes = changes

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((sys.version, self._packages, self._changes)).encode())
        for path in [Path(__file__), *self._parts]:
            digest.update(path.read_bytes())
        for package in self._packages:
            version = getattr(importlib.import_module(package), "__version__", "")
            digest.update(f"{package}={version}".encode())
        return digest.hexdigest()[:16]

    def build(self, engine: DockerEngine, *, tools: Sequence[str] = TOOLS) -> bool:
        """The engine has the image as this recipe makes it; False if it had. Raises EngineError or HostError."""
        if (engine.image_labels(self.image) or {}).get(LABEL) == self.digest:
            return False
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                files = RootFileSystem(tar)
                for tool in tools:
                    files.program(tool)
                files.python(self._packages)
                for path in self._parts:
                    files.text(f"/app/{path.parent.name}/{path.name}", path.read_text(encoding="utf-8"))
            archive.flush()
            environment = f"ENV PATH=/usr/bin:/bin PYTHONHOME=/usr PYTHONPATH=/app:{SITE} PYTHONUNBUFFERED=1"
            changes = [environment, "WORKDIR /", *self._changes, f"LABEL {LABEL}={self.digest}"]
            engine.import_image(archive.name, self.image, changes)
        return True
