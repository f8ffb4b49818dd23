"""Root file systems of this very machine's files, for images that come from no registry.

Programs come with the libraries `ldd` names; a Python comes as the one that runs this, with its standard library and
the distributions asked for out of its environment, and what these require. Nothing is downloaded. What an image is
made of is hashed into a label, so that a second call finds it there and does nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from mountkit.errors import HostError, MountkitError
from mountkit.run.docker_engine import DockerEngine

LABEL = "mountkit.recipe"
PYTHON = "/usr/bin/python3"
_HOME = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
TOOLS = ("sh", "ls", "cat", "env", "id", "sleep", "true", "wc")
_UNNEEDED = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
_UNNEEDED |= {"__pycache__", "lib2to3", "pydoc_data"}


class RootFileSystem:
    """A tar file that becomes an image; a path is added once, whatever asks for it."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._paths: set[str] = set()
        self._linked: list[str] = []
        for directory, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("usr/bin", 0o755)):
            self._directory(directory, mode)
        self.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        self.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
        if os.path.exists(_CERTIFICATES):  # obstore makes no client without them, not even for plain http
            self.text(_CERTIFICATES, Path(_CERTIFICATES).read_text(encoding="utf-8"))

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
        self._linked.append(path)

    def python(self, distributions: Iterable[metadata.Distribution]) -> None:
        """The Python that runs this, as /usr/bin/python3, with distributions of its environment in SITE."""
        self.binary(os.path.realpath(sys.executable), PYTHON)
        self.tree(sysconfig.get_path("stdlib"), _HOME)
        for found in distributions:
            self._distribution(found)

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
                    self._linked.append(path)

    def _distribution(self, found: metadata.Distribution) -> None:
        for file in found.files or ():
            path = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts or not path.is_file():
                continue
            self._content(f"{SITE}/{file}", path.read_bytes(), 0o755 if ".so" in path.name else 0o644)
            if ".so" in path.name:
                self._linked.append(str(path))

    def libraries(self) -> None:
        """What everything added so far is linked with; a wheel's own libraries lie beside it and are found there."""
        done = subprocess.run(["ldd", *self._linked], capture_output=True, text=True, check=False)
        for library in sorted(set(re.findall(r"(/\S+) \(0x", done.stdout))):
            if ".libs/" not in library and "-packages/" not in library:
                self._content(library, Path(library).read_bytes(), 0o755)

    def _above(self, name: str) -> None:
        """The directories `name` lies in: what is not in the archive, rootless Docker closes to ordinary users."""
        for directory in reversed(Path(name).parents[:-1]):
            if str(directory) not in self._paths:
                self._directory(str(directory), 0o755)

    def _directory(self, path: str, mode: int) -> None:
        self._paths.add(path)
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)

    def _content(self, path: str, content: bytes, mode: int) -> None:
        name = os.path.normpath(path).lstrip("/")
        if name in self._paths:
            return
        self._above(name)
        self._paths.add(name)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), mode
        self._tar.addfile(entry, io.BytesIO(content))


class Recipe:
    """An image to be: programs, Python distributions with all they require, files of ours, and Dockerfile words."""

    def __init__(
        self,
        image: str,
        *,
        trees: Mapping[str, Path],
        distributions: Sequence[str],
        changes: Sequence[str],
        programs: Sequence[str] = (),
    ) -> None:
        self.image = image
        self._trees = trees
        self._distributions = [metadata.distribution(name) for name in _required(distributions)]
        self._programs = (*TOOLS, *programs)
        self._changes = changes

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(repr((sys.version, self._programs, self._changes)).encode())
        for path in [Path(__file__), *(path for tree in self._trees.values() for path in _files(tree))]:
            digest.update(path.read_bytes())
        digest.update(repr([(one.name, one.version) for one in self._distributions]).encode())
        return digest.hexdigest()[:16]

    def build(self, engine: DockerEngine) -> bool:
        """The engine has the image as this recipe makes it; False if it had. Raises EngineError or HostError."""
        if (engine.image_labels(self.image) or {}).get(LABEL) == self.digest:
            return False
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                files = RootFileSystem(tar)
                for program in self._programs:
                    files.program(program)
                files.python(self._distributions)
                for target, tree in self._trees.items():
                    files.tree(str(tree), target)
                files.libraries()
            archive.flush()
            environment = "ENV PATH=/usr/bin:/bin PYTHONPATH=/app PYTHONUNBUFFERED=1"
            changes = [environment, "WORKDIR /", *self._changes, f"LABEL {LABEL}={self.digest}"]
            engine.import_image(archive.name, self.image, changes)
        return True


def main(*recipes: Recipe, real: str = "") -> int:
    """Builds them and says so; the exit code. An image we did not make is left alone, and called `real`."""
    engine = DockerEngine()
    try:
        engine.check()
        for recipe in recipes:
            labels = engine.image_labels(recipe.image)
            if real and labels is not None and LABEL not in labels:
                print(f"{recipe.image} is there, and it is {real}")
            elif recipe.build(engine):
                print(f"made {recipe.image} of this machine's own files")
            else:
                print(f"{recipe.image} is there already")
    except MountkitError as exc:
        print(f"error: {exc.sentence}", f"hint: {exc.hint}" if exc.hint else "", sep="\n", file=sys.stderr)
        return exc.exit_code
    return 0


def _required(names: Sequence[str]) -> list[str]:
    """`names` and everything they require here, extras apart. Raises HostError where one is missing."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            if name in names:
                raise HostError(f"this Python has no `{name}`, which the image is made of", "pip install it") from None
            continue  # for another system or another Python
        found[name] = None
        waiting += [match[0] for r in requirements if "extra ==" not in r and (match := re.match(r"[\w.-]+", r))]
    return sorted(found)


def _files(tree: Path) -> list[Path]:
    return [path for path in sorted(tree.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _site() -> str:
    """Where a Python at /usr/bin/python3 looks for packages, also with `-I`: Debian's own has another place."""
    if "dist-packages" in Path(site.__file__ or "").read_text(encoding="utf-8"):
        return "/usr/lib/python3/dist-packages"
    return f"{_HOME}/site-packages"


SITE = _site()
