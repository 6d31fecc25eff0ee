"""A thin adaptor: CMakeLists.txt says how the core is built, pyproject.toml everything else."""

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build isolation leaves the folder of setup.py out

import cmake_build  # noqa: E402


class CMakeBuild(build_ext):
    def build_extensions(self):
        headers = Path(sysconfig.get_path("include"))
        if not (headers / "Python.h").exists():
            raise PlatformError(f"mbq_store: Python's headers must be installed (python3-dev, python3-devel), got no "
                                f"Python.h in {headers}")
        output = Path(self.get_ext_fullpath("mbq_store._core")).resolve().parent
        cmake_build.build(ROOT, ROOT / "build" / "cmake", {"MBQ_STORE_OUTPUT": output}, packages=["pybind11"])


setup(ext_modules=[Extension("mbq_store._core", sources=[])],
      cmdclass={"build": cmake_build.FreshBuild, "build_ext": CMakeBuild})
