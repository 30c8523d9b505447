"""Compiles a C++ file of this folder with the system's compiler, once for each machine, and loads it."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# Errors of arithmetic are neither trapped nor put into errno, so that roots and quotients vectorise; NaN and inf stay right.
# Products and sums are fused only where the source says so, for torch's bits.
ARITHMETIC = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS = ["-std=c++17", "-O3", "-march=native", *ARITHMETIC, "-fopenmp", "-fPIC", "-shared"]
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
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuroplastic_kernels"
    except RuntimeError as error:
        raise RuntimeError(
            f"the native form keeps its library in the user's home, which is unknown: {error} Name a folder that can be "
            "written in the environment variable NEUROPLASTIC_CACHE_DIR"
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


def build(source: Path) -> Path:
    """The shared library of a C++ file, from the cache where it holds one for this file, the compiler and the processor.

    Processes that build at the same time do the same work; each puts a whole file in place. Raises RuntimeError for a
    missing or failing compiler, and for a cache folder that cannot be written.
    """
    command = compiler()
    version = run([*command, "--version"])
    described = (*command, *FLAGS, version, processor())
    parts = (source.read_bytes(), *(part.encode() for part in described))
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    library = cache_folder() / f"{source.stem}-{digest}.so"
    try:
        if library.exists():
            return library
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=f"{source.stem}-") as folder:
            fresh = Path(folder) / library.name
            run([*command, *FLAGS, str(source), "-o", str(fresh)])
            os.replace(fresh, library)
    except OSError as error:
        raise RuntimeError(
            f"the native form keeps its library in {library.parent}, which failed: {error}; name a folder that can be written "
            "in the environment variable NEUROPLASTIC_CACHE_DIR"
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
            f"the native form built {library}, which does not load: {error}; delete that file, or name another folder in the "
            "environment variable NEUROPLASTIC_CACHE_DIR"
        ) from error
