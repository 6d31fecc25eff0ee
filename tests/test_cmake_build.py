"""Building twice: nothing of another environment stays in force, and what is missing is said in one sentence."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.errors import ExecError

import cmake_build

ROOT = Path(__file__).resolve().parent.parent
STUB = """
cmake_minimum_required(VERSION 3.24)
project(stub LANGUAGES NONE)
set(OPTION "" CACHE STRING "")
file(WRITE "${CMAKE_BINARY_DIR}/option" "${OPTION}")
add_custom_command(OUTPUT built COMMAND ${CMAKE_COMMAND} -E touch built DEPENDS "${CMAKE_SOURCE_DIR}/CMakeLists.txt")
add_custom_target(stub ALL DEPENDS built)
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(STUB)
    return folder


def build(source, option="a", packages=("pytest",)):
    """Build the stub and leave a mark, which stays as long as the folder is not emptied."""
    folder = source / "build" / "cmake"
    kept = (folder / "mark").exists()
    cmake_build.build(source, folder, {"OPTION": option}, packages=packages)
    assert (folder / "built").exists() and (folder / "option").read_text() == option
    kept = kept and (folder / "mark").exists()
    (folder / "mark").touch()
    return kept


def test_the_same_environment_builds_only_what_is_new(source):
    assert not build(source)
    built = (source / "build/cmake/built").stat().st_mtime_ns
    assert build(source) and (source / "build/cmake/built").stat().st_mtime_ns == built


def test_options_of_an_earlier_build_are_not_in_force(source):
    build(source, "on")
    assert build(source, "")
    assert build(source, "80;90")


@pytest.fixture
def ninja(tmp_path, monkeypatch):
    """A ninja that is found first and can be removed, as that of an isolated build is."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    link = tmp_path / "isolated" / "ninja"
    link.parent.mkdir()
    link.symlink_to(shutil.which("ninja", path=path))
    (link.parent / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(link.parent / "python"))
    monkeypatch.setenv("PATH", path)
    return link


def test_a_ninja_that_is_gone(source, ninja):
    build(source)
    ninja.unlink()
    assert not build(source)
    assert build(source)


def package(folder, version):
    """A package like torch in a folder of packages."""
    (folder / "headers").mkdir(parents=True)
    (folder / "headers/__init__.py").touch()
    (folder / f"headers-{version}.dist-info").mkdir()
    (folder / f"headers-{version}.dist-info/METADATA").write_text(f"Name: headers\nVersion: {version}\n")


def test_another_torch(source, tmp_path, monkeypatch):
    """In another folder, as of an isolated build, or of another version in the same."""
    def use(folder):
        monkeypatch.setattr(sys, "path", [str(folder), *path])
        monkeypatch.delitem(sys.modules, "headers", raising=False)
        importlib.invalidate_caches()
        return build(source, packages=["headers"])
    path = list(sys.path)
    package(tmp_path / "one", "2.13")
    package(tmp_path / "two", "2.13")
    assert [use(tmp_path / name) for name in ("one", "one", "two", "two")] == [False, True, False, True]
    (tmp_path / "two/headers-2.13.dist-info").rename(tmp_path / "two/headers-2.14.dist-info")
    (tmp_path / "two/headers-2.14.dist-info/METADATA").write_text("Name: headers\nVersion: 2.14\n")
    assert importlib.metadata.version("headers") == "2.14" and not use(tmp_path / "two")


def test_a_source_tree_that_was_moved(source):
    build(source)
    moved = source.rename(source.parent / "moved")
    assert not build(moved)
    copy = shutil.copytree(moved, source.parent / "copy")
    assert not build(copy) and build(moved)


@pytest.mark.parametrize("variable, value", [("CXXFLAGS", "-g"), ("CUDA_HOME", "/usr/local/cuda-12")])
def test_what_cmake_reads_once_from_the_environment(source, monkeypatch, variable, value):
    monkeypatch.delenv(variable, raising=False)
    build(source)
    monkeypatch.setenv(variable, value)
    assert not build(source)
    assert build(source)


def test_a_build_folder_of_another_machine(source, monkeypatch):
    build(source)
    monkeypatch.setattr(cmake_build.platform, "libc_ver", lambda: ("glibc", "2.99"))
    assert not build(source)


def test_processes_take_turns(source):
    """Else one empties the folder that the other works in."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda package: cmake_build.build(source, source / "build/cmake", {}, packages=[package]),
                      ["pytest", "numpy"] * 3))


def test_modules_that_are_no_longer_part_of_the_wheel(tmp_path):
    command = cmake_build.FreshBuild(Distribution())
    command.build_base = str(tmp_path)
    command.ensure_finalized()
    stale = Path(command.build_lib) / "mbq_store/store.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    command.run()
    assert tmp_path in stale.parents and not stale.exists()


@pytest.mark.parametrize("tools, message", [
    ((), "cmake must be installed, got none on the PATH: pip install cmake"),
    (("cmake",), "ninja must be installed, got none on the PATH: pip install ninja"),
    (("cmake", "ninja"), r"a C\+\+20 compiler must be installed .*, got none of c\+\+, g\+\+, clang\+\+ on the PATH"),
    (("cmake", "ninja", "c++"), "headers must be installed to build without isolation, got none: pip install headers"),
])
def test_what_is_missing_is_said_in_one_sentence(source, tmp_path, monkeypatch, tools, message):
    for tool in tools:
        (tmp_path / tool).symlink_to("/bin/true")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ExecError, match=f"^{message}$"):
        build(source, packages=["headers"])


def last_words(folder, *command, **environment):
    """The last line of a build that fails."""
    done = subprocess.run([sys.executable, *command, "-q", "build_ext"], cwd=ROOT / folder, capture_output=True,
                          env={**os.environ, **environment}, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("folder", [".", "python/mbq_store"])
def test_an_install_that_fails_ends_in_that_sentence(folder):
    assert last_words(folder, "setup.py", CXX="no-such-compiler") == \
        "error: CXX must name a C++ compiler, got 'no-such-compiler', which is not on the PATH"


def test_a_python_without_headers():
    code = "import runpy, sysconfig; sysconfig.get_path = lambda _: '/none'; runpy.run_path('setup.py')"
    assert last_words("python/mbq_store", "-c", code) == \
        "error: mbq_store: Python's headers must be installed (python3-dev, python3-devel), got no Python.h in /none"


def test_a_build_that_fails_ends_in_that_sentence(source, capfd):
    (source / "CMakeLists.txt").write_text(STUB + 'message(FATAL_ERROR "why")')
    with pytest.raises(ExecError, match="^configuring with cmake ended with status 1; the lines above say why$"):
        build(source)
    assert "why" in capfd.readouterr().err
