"""Makes `mountkit/tiny:latest`: a shell and the everyday tools of this very machine, from no registry.

Each program is copied together with the libraries `ldd` names, packed as a root file system and imported. The image
carries a hash of this recipe, so that a second call finds it there and does nothing.

    python containers/tiny/build.py
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mountkit.errors import HostError, MountkitError
from mountkit.run.docker_engine import DockerEngine

IMAGE = "mountkit/tiny:latest"
LABEL = "mountkit.recipe"
PROGRAMS = """
    sh ls cat sha256sum find xargs sort wc head tail cp mv rm mkdir rmdir sleep env id stat touch tee dd tr cut seq yes
    date uname true false
"""


def main() -> int:
    engine = DockerEngine()
    try:
        engine.check()
        build(engine)
    except MountkitError as exc:
        print(f"error: {exc.sentence}", f"hint: {exc.hint}" if exc.hint else "", sep="\n", file=sys.stderr)
        return exc.exit_code
    return 0


def build(engine: DockerEngine) -> None:
    """The engine has the image as this recipe makes it. Raises EngineError or HostError."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    if (engine.image_labels(IMAGE) or {}).get(LABEL) == recipe:
        print(f"{IMAGE} is there already")
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            _pack(tar)
        archive.flush()
        changes = ["ENV PATH=/bin", 'CMD ["/bin/sh"]', "WORKDIR /", f"LABEL {LABEL}={recipe}"]
        engine.import_image(archive.name, IMAGE, changes)
    print(f"made {IMAGE} of {len(PROGRAMS.split())} programs of this machine")


def _pack(tar: tarfile.TarFile) -> None:
    libraries: set[str] = set()
    for directory, mode in (("bin", 0o755), ("etc", 0o755), ("data", 0o755), ("tmp", 0o1777)):
        _add_directory(tar, directory, mode)
    _add(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644)
    _add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
    for name in PROGRAMS.split():
        found = shutil.which(name, path="/usr/bin:/bin")
        if not found:
            raise HostError(f"this machine has no `{name}`, which the test image is made of", "install coreutils")
        _add(tar, f"bin/{name}", Path(found).read_bytes(), 0o755)
        libraries |= _libraries(found)
    # Directories that are not in the archive are closed to ordinary users where rootless Docker unpacks it.
    for above in sorted({str(one) for library in libraries for one in Path(library).parents} - {"/", "/bin", "/etc"}):
        _add_directory(tar, above.lstrip("/"), 0o755)
    for library in sorted(libraries):
        _add(tar, library.lstrip("/"), Path(library).read_bytes(), 0o755)


def _add_directory(tar: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


def _libraries(program: str) -> set[str]:
    """The shared libraries and the loader of `program`; none if it is static."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return set(re.findall(r"(/\S+) \(0x", done.stdout))


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
