"""A thin adaptor: CMakeLists.txt says how _C.so is built, pyproject.toml everything else."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_OPTIONS = ("MBQ_CUDA", "MBQ_CUDA_ARCHS")  # environment variables that are CMake options of the same name


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"  # no Python ABI in it, so no ABI tag

    def build_extension(self, extension):
        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = ROOT / "build" / "cmake"
        # ninja may be installed beside this Python without being on the PATH
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        options = [f"-D{name}={os.environ[name]}" for name in BUILD_OPTIONS if name in os.environ]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DMBQ_OUTPUT={output}",
                        f"-DMBQ_PYTHON={sys.executable}", *options], check=True, env=environment)
        subprocess.run(["cmake", "--build", build], check=True, env=environment)


setup(
    packages=find_packages(include=["mbq_kernels*"]) + find_packages("python"),
    package_dir={"mbq_train": "python/mbq_train"},
    ext_modules=[Extension("mbq_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
