"""A thin adaptor: CMakeLists.txt says how the library is built, pyproject.toml everything else."""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build isolation leaves the folder of setup.py out

import cmake_build  # noqa: E402

OPTIONS = {"MBQ_CUDA": "auto", "MBQ_CUDA_ARCHS": ""}  # of CMake, and the environment variables that set them
LAYERS = ("mbq_train", "mbq_lab")  # packages below python/; mbq_store is a distribution of its own
BENCH = "mbq_lab.bench"  # the folder bench/ where it is installed, for `mbq bench`


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"  # no Python ABI in it, so no ABI tag

    def build_extensions(self):
        output = Path(self.get_ext_fullpath("mbq_kernels._C")).resolve().parent
        options = {name: os.environ.get(name, default) for name, default in OPTIONS.items()}
        cmake_build.build(ROOT, ROOT / "build" / "cmake", {"MBQ_OUTPUT": output, **options}, packages=["torch"])


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # by the stable ABI one library serves every Python and torch


setup(
    packages=[*find_packages(include=["mbq_kernels*"]),
              *find_packages("python", include=[f"{name}*" for name in LAYERS]), BENCH],
    package_dir={name: f"python/{name}" for name in LAYERS} | {BENCH: "bench"},
    package_data={BENCH: ["pytest.ini", "machine_code.json"]},
    ext_modules=[Extension("mbq_kernels._C", sources=[])],
    cmdclass={"bdist_wheel": Wheel, "build": cmake_build.FreshBuild, "build_ext": CMakeBuild},
)
