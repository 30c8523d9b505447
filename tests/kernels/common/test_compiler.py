"""Building and keeping the compiled forms: what is built, when, and what is said where it fails."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import torch

from hf_neuroplastic import NeuroPlastic
from neuroplastic_kernels import dispatch
from neuroplastic_kernels.common import compiler

needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++").split()[0]), reason="needs a C++ compiler: install g++ or set CXX"
)
REMEDY = r"install one \(for example the package g\+\+\), name it in the environment variable CXX, or take backend='reference'"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small C++ file, and an empty cache."""
    monkeypatch.setenv("NEUROPLASTIC_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A compiler that notes each file it compiles; returns how many."""
    log = tmp_path / "log"
    real = os.environ.get("CXX", "g++")
    command = f'case "$*" in *--version*) ;; *) echo x >> "{log}" ;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CXX", script(tmp_path / "counted", command))
    return lambda: len(log.read_text().split()) if log.exists() else 0


@pytest.fixture
def forgotten():
    """Nothing is loaded yet, as in a new process."""
    compiler.load.cache_clear()
    yield
    compiler.load.cache_clear()


@needs_compiler
def test_a_library_is_built_once_for_each_source_flags_and_processor(source, counted, monkeypatch):
    first = compiler.build(source)
    assert compiler.build(source) == first
    assert counted() == 1
    assert sorted(first.parent.iterdir()) == [first]  # nothing half-written stays
    monkeypatch.setattr(compiler, "FLAGS", [*compiler.FLAGS, "-DOTHER"])
    other_flags = compiler.build(source)
    monkeypatch.setattr(compiler, "processor", lambda: "another")
    other_processor = compiler.build(source)
    source.write_text('extern "C" int answer() { return 43; }\n')
    assert len({first, other_flags, other_processor, compiler.build(source)}) == 4
    assert counted() == 4


@needs_compiler
def test_a_library_loads_and_answers(source, forgotten):
    assert compiler.load(source).answer() == 42


@needs_compiler
def test_processes_that_build_at_once_do_not_disturb_each_other(source, tmp_path):
    code = (
        "import sys; from pathlib import Path; from neuroplastic_kernels.common.compiler import load;"
        "sys.stdin.read(1); print(load(Path(sys.argv[1])).answer())"
    )
    command = [sys.executable, "-c", code, str(source)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        process.stdin.write("x")  # go
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in running] == ["42", "42"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("environment", [{"CXX": "no-such-compiler -x"}, {"PATH": "", "CXX": ""}])
def test_no_compiler(environment, source, forgotten, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = "no-such-compiler" if environment["CXX"] else "(g|clang)[+][+]"
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad, words = torch.ones(1), rf"the native form needs a C\+\+ compiler, but '{name}' was not found; {REMEDY}"
    with pytest.raises(RuntimeError, match=words):
        NeuroPlastic([p], backend="native").step()
    assert not compiler.cache_folder().exists()


def test_a_compiler_that_fails_is_quoted(source, tmp_path, monkeypatch):
    says = (
        'case "$*" in *--version*) exit 0 ;; esac; echo note: hm >&2; echo "a.cpp:1: fatal error: no omp.h" >&2; exit 3'
    )
    monkeypatch.setenv("CXX", script(tmp_path / "broken", says))
    words = rf"broken .*-fopenmp.* ended with status 3: a.cpp:1: fatal error: no omp.h; {REMEDY}"
    with pytest.raises(RuntimeError, match=words):
        compiler.build(source)
    assert not list(compiler.cache_folder().iterdir())


def test_a_compiler_that_does_not_run_is_quoted(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "silent", "exit 9"))
    with pytest.raises(RuntimeError, match=r"silent --version ended with status 9: it printed nothing; install"):
        compiler.build(source)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(RuntimeError, match=r"keeps its library in .*cache.*NEUROPLASTIC_CACHE_DIR"):
        compiler.build(source)


@needs_compiler
def test_a_library_that_does_not_load_is_named(source, forgotten, monkeypatch):
    library = compiler.build(source).with_name("other.so")
    library.write_bytes(b"not a library")
    monkeypatch.setattr(compiler, "build", lambda source: library)
    with pytest.raises(RuntimeError, match=r"which does not load: .*delete that file"):
        compiler.load(source)


SPOILT = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "another library": lambda path: path.write_bytes(b"of other symbols"),
    "writable by all": lambda path: path.chmod(0o777),
    "a link": lambda path: path.rename(path.with_suffix(".old")).parent and path.symlink_to(path.with_suffix(".old")),
}


@needs_compiler
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_is_not_as_it_was_built_is_built_again(source, forgotten, counted, spoil):
    spoil(compiler.build(source))
    assert compiler.load(source).answer() == 42
    assert counted() == 2


def test_builds_that_end_beside_this_one_disturb_nothing(tmp_path):
    def others():
        while not done:
            with tempfile.TemporaryDirectory(dir=tmp_path, prefix=compiler.BUILDING):
                pass

    done = []
    tmp_path.chmod(0o700)
    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(300):
            compiler.prepare(tmp_path)
    finally:
        done.append(True)
        thread.join()


@needs_compiler
def test_only_the_owner_can_write_the_library_whatever_the_umask(source):
    before = os.umask(0)
    try:
        library = compiler.build(source)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (library.parent, library)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_refused(source, tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(RuntimeError, match=r"others own or may write to; .*chmod go-w.*NEUROPLASTIC_CACHE_DIR"):
        compiler.build(source)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to give files away")
def test_files_of_other_users_are_not_loaded(source, tmp_path):
    library = compiler.build(source)
    os.chown(library, 12345, 12345)
    again = compiler.build(source)
    assert again.stat().st_uid == 0
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(RuntimeError, match="others own"):
        compiler.build(source)


@needs_compiler
def test_what_killed_builds_left_is_removed(source, tmp_path):
    compiler.build(source)
    for name, age in (("building-old", 7200), ("building-now", 0)):
        folder = tmp_path / "cache" / name
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    compiler.build(source)
    assert [path.name for path in (tmp_path / "cache").glob("building-*")] == ["building-now"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROPLASTIC_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / "neuroplastic_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiler.cache_folder() == tmp_path / "home" / ".cache" / "neuroplastic_kernels"
    monkeypatch.setenv("NEUROPLASTIC_CACHE_DIR", str(tmp_path / "own"))
    assert compiler.cache_folder() == tmp_path / "own"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("NEUROPLASTIC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler.Path, "home", homeless)
    with pytest.raises(RuntimeError, match=r"home directory.*NEUROPLASTIC_CACHE_DIR"):
        compiler.cache_folder()
    monkeypatch.setenv("HOME", "")
    with pytest.raises(RuntimeError, match=r"HOME is empty.*NEUROPLASTIC_CACHE_DIR"):
        compiler.cache_folder()


@needs_compiler
def test_the_default_takes_the_native_form_where_it_builds(monkeypatch, caplog):
    params, forms = [torch.zeros(3)], dispatch.FORMS["plasticity_step"]
    assert dispatch.select("plasticity_step", "auto", params) is forms.load_native()
    assert dispatch.select("plasticity_step", "native", params) is forms.load_native()
    assert dispatch.select("plasticity_step", "reference", params) is forms.reference

    def broken():
        raise RuntimeError("no C++ compiler")

    monkeypatch.setitem(dispatch.FORMS, "plasticity_step", forms._replace(load_native=broken))
    dispatch.native_form_if_it_builds.cache_clear()
    dispatch.say_once.cache_clear()
    try:
        for _ in range(2):
            assert dispatch.select("plasticity_step", "auto", params) is forms.reference
        assert len([record for record in caplog.records if "no C++ compiler" in record.message]) == 1
    finally:
        dispatch.native_form_if_it_builds.cache_clear()


@pytest.mark.parametrize("command", ['"g++', "/dev/null"])
def test_a_command_that_is_none_is_reported(source, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(RuntimeError, match="take backend="):
        compiler.build(source)


def test_a_compiler_that_does_not_run_is_reported(source, tmp_path, monkeypatch):
    fake = tmp_path / "fake-g++"
    fake.write_text("no program")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(RuntimeError, match=r"does not run.*take backend="):
        compiler.build(source)
