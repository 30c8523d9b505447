"""Compiles a C++ file of this folder with the system's compiler, once for each machine, and loads it."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

# Errors of arithmetic are neither trapped nor put into errno, so that roots and quotients vectorise; NaN and inf stay right.
# Products and sums are fused only where the source says so, for torch's bits.
ARITHMETIC = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS = ["-std=c++17", "-O3", "-march=native", *ARITHMETIC, "-fopenmp", "-fPIC", "-shared"]
ELSEWHERE = "in the environment variable NEUROPLASTIC_CACHE_DIR"
BUILDING, LONGEST_BUILD = "building-", 3600.0  # folders of builds, and after how many seconds one was killed
REMEDY = (
    "install one (for example the package g++), name it in the environment variable CXX, or take backend='reference'"
)


def compiler() -> list[str]:
    """The command in CXX, else the system's compiler. Raises RuntimeError where it is not installed."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"the environment variable CXX is no command: {error}; {REMEDY}") from None
    command = chosen or ["clang++" if sys.platform == "darwin" else "g++"]
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"the native form needs a C++ compiler, but {command[0]!r} was not found; {REMEDY}")
    return command


def cache_folder() -> Path:
    """NEUROPLASTIC_CACHE_DIR, else a folder in XDG_CACHE_HOME or ~/.cache. Raises RuntimeError for a user without a home."""
    chosen = os.environ.get("NEUROPLASTIC_CACHE_DIR")
    if chosen:
        return Path(chosen)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "neuroplastic_kernels"
    try:
        if os.environ.get("HOME") == "":
            raise RuntimeError("HOME is empty.")
        return Path.home() / ".cache" / "neuroplastic_kernels"
    except RuntimeError as error:
        raise RuntimeError(
            f"the native form keeps its library in the user's home, which is unknown: {error} Name a folder that can be "
            f"written {ELSEWHERE}"
        ) from None


def processor() -> str:
    """What -march=native depends on."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    named = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join([platform.machine(), platform.processor(), *named])


def run(command: list[str]) -> str:
    """What a command prints. Raises RuntimeError with its first error line, or its first line, where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise RuntimeError(
            f"the native form needs a C++ compiler, but {command[0]!r} does not run: {error}; {REMEDY}"
        ) from None
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    reason = next((line for line in lines if "error" in line), next(iter(lines), "it printed nothing"))
    raise RuntimeError(
        f"the native form needs a working C++ compiler, but {shlex.join(command)} ended with status {done.returncode}: "
        f"{reason}; {REMEDY}"
    )


def is_private(path: Path) -> bool:
    """Whether nobody but this user, or root, can have written a file or folder, which is no link."""
    found = path.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid in (os.getuid(), 0)
    return mine and not stat.S_ISLNK(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def kept(folder: Path, name: str) -> Path | None:
    """The library `name`-HASH.so of a folder whose content has that hash; others, cut short or of other people, are removed."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if is_private(path) and path.stem == f"{name}-{content_hash(path)}":
                return path
            path.unlink()
    return None


def prepare(folder: Path) -> None:
    """Makes the folder, for this user alone, and removes what killed builds left. Raises RuntimeError for one of others."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_private(folder):
        raise RuntimeError(
            f"the native form loads what it keeps in {folder}, which is a link, or which others own or may write to; take the "
            f"right to write from them (chmod go-w), or name a folder of your own {ELSEWHERE}"
        )
    for left in folder.glob(f"{BUILDING}*"):
        with contextlib.suppress(FileNotFoundError):  # a build that has just ended
            if time.time() - left.stat().st_mtime > LONGEST_BUILD:
                shutil.rmtree(left, ignore_errors=True)


def put(fresh: Path, library: Path) -> None:
    """Moves a file into place in one piece that a crash of the machine leaves whole or absent."""
    fresh.chmod(0o700)
    for path in (fresh, fresh.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    os.replace(fresh, library)


def build(source: Path) -> Path:
    """The shared library of a C++ file, from the cache where it holds one for this file, the compiler and the processor.

    Processes that build at the same time do the same work; each puts a whole file in place, whose name holds the hash of its
    content. Raises RuntimeError for a missing or failing compiler, and for a cache folder that cannot be written, or that
    others can write.
    """
    command = compiler()
    version = run([*command, "--version"])
    described = (*command, *FLAGS, version, processor())
    parts = (source.read_bytes(), *(part.encode() for part in described))
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    folder, name = cache_folder(), f"{source.stem}-{digest}"
    try:
        prepare(folder)
        library = kept(folder, name)
        if library is None:
            with tempfile.TemporaryDirectory(dir=folder, prefix=BUILDING) as scratch:
                fresh = Path(scratch) / source.with_suffix(".so").name
                run([*command, *FLAGS, str(source), "-o", str(fresh)])
                library = folder / f"{name}-{content_hash(fresh)}.so"
                put(fresh, library)
    except OSError as error:
        raise RuntimeError(
            f"the native form keeps its library in {folder}, which failed: {error}; name a folder that can be written "
            f"{ELSEWHERE}"
        ) from error
    return library


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file, built on first use. Raises RuntimeError as `build` does, and where loading fails."""
    library = build(source)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(
            f"the native form built {library}, which does not load: {error}; delete that file, or name another folder "
            f"{ELSEWHERE}"
        ) from error
