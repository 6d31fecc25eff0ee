"""Who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mbq_kernels._library import ops

ROOT = Path(__file__).resolve().parent.parent
STANDARD_HEADERS = {"cmath", "cstdint", "cstring", "limits", "type_traits"}


def imports(path):
    """Absolute names of every module a file imports, wherever in it."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1]).removeprefix("python.")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[:len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def kernel_attributes(path):
    """Attributes a file takes from mbq_kernels, under whatever name it was imported."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.asname or "mbq_kernels" for node in nodes if isinstance(node, ast.Import) for alias in node.names
             if alias.name.split(".")[0] == "mbq_kernels"}
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            and node.value.id in names}


def includes(path):
    return re.findall(r'^#include ["<]([^">]+)[">]', path.read_text(), re.MULTILINE)


def python_files(*folders):
    """Return the Python files below folders, without what a build has copied there."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
            if "build" not in path.relative_to(ROOT).parts]


@pytest.mark.parametrize("room, more", [("math", set()), ("simd", {"algorithm", "cstdlib", "immintrin.h"})])
def test_arithmetic_and_vectors_include_no_torch(room, more):
    files = list((ROOT / "csrc" / room).iterdir())
    assert files
    for path in files:
        for name in set(includes(path)) - STANDARD_HEADERS - more:
            assert name.startswith("math/") or (path.parent / name).is_file(), path


@pytest.mark.parametrize("room, others", [("cpu", ("cuda", "ops")), ("cuda", ("cpu", "ops")), ("ops", ())])
def test_cpu_and_cuda_never_include_each_other_or_another_op(room, others):
    files = [path for path in (ROOT / "csrc" / room).rglob("*") if path.is_file()]
    assert files
    for path in files:
        for name in includes(path):
            assert not any(f"{other}/" in name for other in others), path
            assert Path(name).stem not in ops(), f"{path} includes an op"


def test_ops_of_both_devices_reach_them_through_headers_alone():
    for path in (ROOT / "csrc/ops").glob("*.cpp"):
        assert path.stem in ops() or path.with_suffix(".h").is_file(), path
        assert includes(path) and not [name for name in includes(path) if "/" in name], path
        assert "#if" not in path.read_text(), f"{path} differs by device"


@pytest.mark.parametrize("files, space", [("cuda/**/*.cu*", "mbq::cuda"), ("ops/*.cpp", "MBQ_NAMESPACE")])
def test_cuda_has_a_namespace_of_its_own(files, space):
    """Functions of one name and signature on CPU and CUDA would be one function in the library, without a warning."""
    for path in (ROOT / "csrc").glob(files):
        assert set(re.findall(r"^namespace (\S+) {", path.read_text(), re.MULTILINE)) == {space}, path


@pytest.mark.parametrize("room", ["reference", "triton"])
def test_backends_never_import_ops(room):
    for path in python_files(f"mbq_kernels/{room}"):
        assert not [name for name in imports(path) if name.startswith("mbq_kernels.ops")], path


@pytest.mark.parametrize("room", ["reference", "triton"])
def test_helpers_of_backends_can_be_told_from_ops(room):
    files = {path.stem for path in python_files(f"mbq_kernels/{room}") if not path.stem.startswith("_")}
    assert files - {"quant_math", "affine_math", "code_math", "softmax_math"} <= {*ops()}


def test_ops_never_import_each_other():
    for path in python_files("mbq_kernels/ops"):
        for name in imports(path):
            assert not any(name.startswith(f"mbq_kernels.ops.{op}") for op in ops()), f"{path} imports {name}"


def test_only_the_library_file_touches_torch_library():
    for path in python_files("mbq_kernels"):
        if path.name != "_library.py":
            assert "torch.library" not in path.read_text() and "torch.ops" not in path.read_text(), path


def test_training_layer_uses_only_public_names():
    public = set(__import__("mbq_kernels").__all__) | {"info"}
    for path in python_files("python/mbq_train", "python/mbq_lab"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("mbq_kernels.")}
        used |= kernel_attributes(path)
        assert used <= public, f"{path} uses {used - public}"


# What a room of mbq_lab may import of its others; a file beside the rooms is a room.
LAB = {"spec_options": (), "option_values": (), "recipe_options": (),
       "options": ("option_values", "recipe_options", "spec_options"), "data": (), "models": (),
       "training": ("options", "data"),
       "recipes": ("options", "data", "training"),
       "runs": ("options", "data", "models", "training", "recipes"),
       "command": ("options", "data", "models", "training", "recipes", "runs")}


def test_training_layer_imports_nothing_of_the_laboratory():
    for path in python_files("python/mbq_train"):
        assert not [name for name in imports(path) if name.startswith("mbq_lab")], path


def test_rooms_of_the_laboratory_are_imported_in_one_direction():
    rooms = {path.relative_to(ROOT / "python/mbq_lab").with_suffix("").parts[0]
             for path in python_files("python/mbq_lab")}
    assert rooms == {*LAB, "__init__"}
    for path in python_files("python/mbq_lab"):
        room = path.relative_to(ROOT / "python/mbq_lab").with_suffix("").parts[0]
        used = {name.split(".")[1] for name in imports(path) if name.startswith("mbq_lab.")} & rooms
        assert room == "__init__" or used <= {room, *LAB[room]}, f"{path} imports {used - {room, *LAB[room]}}"


def test_training_layer_needs_torch_and_numpy_alone():
    extra = {"PIL", "matplotlib", "mbq_lab", "pyarrow", "rich", "safetensors", "sklearn", "typer", "mbq_store"}
    code = "import sys, torch; before = {*sys.modules}; import mbq_train; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "mbq_train" in loaded and not loaded & extra


def test_kernels_import_no_training_layer_and_hold_no_modules():
    for path in python_files("mbq_kernels"):
        assert not [name for name in imports(path) if name.startswith(("mbq_train", "mbq_lab", "mbq_store"))], path
        assert "nn.Module" not in path.read_text(), path


def test_stores_need_neither_torch_nor_the_other_rooms():
    files = python_files("python/mbq_store/mbq_store")
    assert files
    for path in files:
        used = {name.split(".")[0] for name in imports(path)}
        assert used - {"mbq_store"} - sys.stdlib_module_names <= {"numpy", "safetensors"}, path


def test_the_core_of_stores_includes_no_torch_and_no_op():
    files = list((ROOT / "csrc/host").iterdir())
    assert files
    for path in files:
        for name in includes(path):
            assert "torch" not in name and Path(name).stem not in ops(), path
            assert "/" not in name or name.split("/")[0] in ("simd", "pybind11"), path


def test_nothing_imports_tests_or_bench():
    local = {path.stem for path in python_files("tests", "bench")} | {"tests", "bench"}
    for path in python_files("mbq_kernels", "python"):
        assert not [name for name in imports(path) if name.split(".")[0] in local], path
