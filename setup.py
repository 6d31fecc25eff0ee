"""A thin adaptor: CMakeLists.txt says how the libraries are built, pyproject.toml everything else."""

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
        if fullname.endswith("_C"):
            return os.path.join(*fullname.split(".")) + ".so"  # no Python ABI in it, so no ABI tag
        return super().get_ext_filename(fullname)

    def build_extensions(self):
        kernels, store = (Path(self.get_ext_fullpath(extension.name)).resolve().parent for extension in self.extensions)
        build = ROOT / "build" / "cmake"
        # ninja may be installed beside this Python without being on the PATH
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        options = [f"-D{name}={os.environ[name]}" for name in BUILD_OPTIONS if name in os.environ]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DMBQ_OUTPUT={kernels}",
                        f"-DMBQ_STORE_OUTPUT={store}", f"-DMBQ_PYTHON={sys.executable}", *options], check=True,
                       env=environment)
        subprocess.run(["cmake", "--build", build], check=True, env=environment)


setup(
    packages=find_packages(include=["mbq_kernels*"]) + find_packages("python"),
    package_dir={"mbq_train": "python/mbq_train", "mbq_store": "python/mbq_store"},
    ext_modules=[Extension("mbq_kernels._C", sources=[]), Extension("mbq_store._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
