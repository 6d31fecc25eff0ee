"""How long files and functions may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION, KERNEL = 250, 40, 60
# One statement of the arithmetic: its twins in Python have the same functions in the same order.
WHOLE = {"csrc/math/quant_math.h"}


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


_SILENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'', re.DOTALL)
_ARGUMENTS = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_HEAD = re.compile(rf"([~\w]+|operator\S+)\s*{_ARGUMENTS}\s*(?:const|noexcept|->[^{{]*|:[^{{]*)*\s*$")
_OTHER = re.compile(r"\b(if|for|while|switch|catch|namespace|struct|class|enum|else|do)\b\s*(constexpr\s*)?(\(|$)")


def functions_of(text):
    """Yield (name, lines of the body, whether it is a kernel) of the functions of C++ or CUDA code, no lambdas."""
    text = _SILENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    open_braces = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "}":
            start, name, kernel = open_braces.pop()
            if name and not any(outer for _, outer, _ in open_braces):
                yield name, text.count("\n", start, brace.start()) - 1, kernel
            continue
        before = text[:brace.start()].rstrip()
        head = before[max(map(before.rfind, ";{}")) + 1:]
        found = None if _OTHER.search(head) else _HEAD.search(head)
        open_braces.append((brace.start(), found and found[1], "__global__" in head))


def test_functions_of_cpp():
    long, kernels, count = [], 0, 0
    for path in sources(".h", ".cuh", ".cpp", ".cu"):
        for name, lines, kernel in functions_of(path.read_text()):
            count, kernels = count + 1, kernels + kernel
            if lines > (KERNEL if kernel else FUNCTION):
                long.append(f"{path.relative_to(ROOT)}: {name} has {lines} lines")
    assert count > 500 and kernels > 10 and not long, long
    assert [found[1:] for found in functions_of("int f(int a) {\n  if (a) {\n    b();\n  }\n}\n")] == [(3, False)]
