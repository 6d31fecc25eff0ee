"""How long files and functions may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION, KERNEL = 250, 40, 60
# One statement of the arithmetic: its twins in Python have the same functions in the same order.
WHOLE = {"csrc/quant_math.h"}


def sources(*suffixes):
    return [path for room in ("mbq_kernels", "python", "tests", "bench", "csrc") for path in (ROOT / room).rglob("*")
            if path.suffix in suffixes and path.is_file() and "build" not in path.relative_to(ROOT).parts]


def is_kernel(node):
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def body_lines(node):
    """Return the lines of a function without its signature and docstring."""
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return node.end_lineno - first.lineno + 1


@pytest.mark.parametrize("suffixes", [(".py",), (".h", ".cuh", ".cpp", ".cu")], ids=["Python", "C++"])
def test_files(suffixes):
    files = sources(*suffixes)
    assert len(files) > 50
    long = {path.relative_to(ROOT).as_posix(): lines for path in files
            if (lines := len(path.read_text().splitlines())) > FILE}
    assert not long.keys() - WHOLE, long


def test_python_functions():
    long, count = [], 0
    for path in sources(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count += 1
                if body_lines(node) > (KERNEL if is_kernel(node) else FUNCTION):
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {body_lines(node)} lines")
    assert count > 1000 and not long, long
