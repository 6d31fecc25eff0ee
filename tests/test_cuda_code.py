"""What nvcc makes of csrc/cuda, read without a GPU: wide accesses, no stack, no local memory, no contraction.

One module, because one process compiles and disassembles.
"""

import collections
import json
import re

import pytest
from cuda_objects import ARCHITECTURES, dump, functions, nvcc
from machine_code import BEFORE, COUNTS, counted
from manifest import MANIFEST

pytestmark = pytest.mark.skipif(nvcc() is None, reason="no nvcc")
QUANTIZERS, CODES, LSBS = r"(?:forward|backward)_kernel", r"(?:switch_bits|dequantize_codes|words)_kernel", \
    r"(?:round_clamp|lsb_gradient)_kernel"
NOTHING_OUT, RESIDUAL_OUT = "LsbOutE0", "LsbOutE2"  # mangled: lsb_penalty writes no element, extract_lsb bytes


def _named(parts, pattern):
    return {key: text for key, text in parts.items() if re.search(pattern, key[1])}


def machine_code(pattern):
    """{(architecture, function): SASS} of the functions whose mangled name has the pattern."""
    return _named(functions("--dump-sass", "Function : "), pattern)


def ptx(pattern):
    """The same before the assembler, which writes division out in its own fused steps."""
    return _named(functions("--dump-ptx", r"\.entry "), pattern)


def test_kernels_are_built_for_two_architectures():
    assert {arch for arch, _ in machine_code(QUANTIZERS)} == set(ARCHITECTURES)


def test_no_kernel_has_a_stack_or_local_memory():
    usage = re.findall(r"Function (\S+):\s*\n.*?STACK:(\d+).*?LOCAL:(\d+)", dump("--dump-resource-usage"))
    assert len(usage) > 50
    assert [name for name, stack, local in usage if int(stack) or int(local)] == []
    code = dump("--dump-sass")
    assert " LDG" in code and not [op for op in (" LDL", " STL") if op in code]


SIZES = {"f": 4, "a": 1, "h": 1}  # of mangled types; all others are floats of 16 bits


def quantizer_kernel(name):
    """Return what a mangled name says: direction, quantizer, bytes of x and of the other tensors, slots, plain."""
    storage = r"[fah]|N\w+?E|S\d*_"
    match = re.search(rf"(forward|backward)_kernelI.*?JobINS_\d+(\w+?)E((?:{storage})+)Li(\d)EEELb([01])E", name)
    direction, quantizer, types, slots, plain = match.groups()
    x, other = (SIZES.get(one, 2) for one in re.findall(storage, types))
    return direction, quantizer, x, other, int(slots), plain == "1"


def accesses_of_tiles(direction, slots):
    """Return how many of one tensor a lane has in flight."""
    return (1 if slots > 1 else 2) if direction == "backward" else {1: 4, 4: 2, 8: 1}[slots]


def test_quantizers_move_16_bytes_at_once():
    """Of the wider of what is read and written, in whole tiles: every access that a lane has in flight is whole."""
    kernels = machine_code(QUANTIZERS)
    assert len(kernels) > 50
    for key, text in kernels.items():
        direction, _, x, other, slots, _ = quantizer_kernel(key[1])
        width, batch = 16 // max(x, other), accesses_of_tiles(direction, slots)
        loads, stores = (accesses(text, op) for op in ("LDG", "STG"))
        if direction == "forward":
            assert loads[x * width] >= batch and stores[other * width] >= batch * slots, key
            continue
        wanted = collections.Counter({x * width: batch})
        wanted[other * width] += batch * slots
        assert all(loads[size] >= count for size, count in wanted.items()) and stores[x * width] >= batch, key


def test_quantizers_neither_divide_nor_contract():
    """A quotient by a reciprocal is two fused steps, a reciprocal two, a term of a scale's gradient one: no more are
    fused. (With offsets there may be two loops, for 1 bit and for more. A reciprocal's steps may be done twice.) The
    general affine form alone divides: its codes go beyond those that reciprocals serve."""
    entries = ptx(QUANTIZERS)
    assert len(entries) > 50
    for key, text in entries.items():
        direction, quantizer, x, other, slots, plain = quantizer_kernel(key[1])
        width = 16 // max(x, other)
        affine, backward = "Affine" in quantizer, direction == "backward"
        each, loops = (0 if affine else 2) + backward, 1 if plain or affine else 2
        elements = width * accesses_of_tiles(direction, slots) + (width if slots == 1 else 0) + 1
        least, most = slots * elements * each, slots * (elements * loops * each + 2)
        fused = len(re.findall(r"\bfma\.", text)) - 2 * text.count("rcp.approx.ftz.f32")
        divides = re.search(r"\bdiv\.\S*f32", text) is not None
        assert least <= fused <= most and divides == (quantizer == "GeneralAffine"), f"{key}: {fused}, {least}, {most}"


def test_quantizers_keep_half_of_the_threads_resident():
    """Of calls of one tensor without offsets: registers for four blocks of 256 threads, for five at one level."""
    usage = dict(re.findall(r"Function (\S+):\s*\n.*?REG:(\d+)", dump("--dump-resource-usage")))
    kernels = [name for name in usage if re.search(QUANTIZERS, name) and re.search(r"Lb1ELi1E", name)]
    assert len(kernels) > 20
    for name in kernels:
        slots = quantizer_kernel(name)[4]
        assert int(usage[name]) <= (48 if slots == 1 else 64), name


@pytest.mark.parametrize("pattern, least", [(QUANTIZERS, 50), (LSBS, 15)])
def test_kernels_do_not_contract(pattern, least):
    """Every product and sum says how it rounds, so that no assembler fuses two; nvcc fuses those that do not."""
    entries = ptx(pattern)
    assert len(entries) > least
    for key, text in entries.items():
        assert "mul.rn.f32" in text, key
        assert not re.search(r"\b(?:mul|add|sub)\.(?:ftz\.)?f32", text), key


def test_lsb_kernels_move_16_bytes_at_once():
    kernels = machine_code(LSBS)
    assert len({name for _, name in kernels}) == 3 * (4 + 2) + 3 * 2  # dtypes x (ops + gradients), and foreach's
    for key, text in kernels.items():
        assert "LDG.E.128" in text, key
        stores = accesses(text, "STG")
        if RESIDUAL_OUT in key[1]:  # as many bytes as a load of 16 has elements
            assert stores[4 if "Efa" in key[1] else 8] >= 4, key
        else:
            assert stores[16] or NOTHING_OUT in key[1], key


def test_logit_kernels_read_16_bytes_at_once():
    kernels = machine_code("logit_(?:rows|gradient)_kernel")
    assert len({name for _, name in kernels}) == 3 * 2 * 3  # of el2n, of cross_entropy_el2n, its gradient
    for key, text in kernels.items():
        assert "LDG.E.128" in text and ("STG.E.128" in text) == ("gradient" in key[1]), key


def test_switched_linear_reads_16_bytes_at_once():
    kernels = machine_code("switched_linear_(?:rows|tiles)")
    assert len({name for _, name in kernels}) == 3 * 2 * 2  # dtypes, codes or planes, one row of x or more
    for key, text in kernels.items():
        assert accesses(text, "LDG")[16] >= 4, key
        assert ("HMMA.16816.F32" in text) == ("_tiles" in key[1]), key


def accesses(text, op):
    """{bytes: how many} of loads or stores"""
    found = re.findall(rf"\b{op}\.E(?:\.(128|64|U16|U8))?(?:\.CONSTANT)?\b", text)
    widths = {"128": 16, "64": 8, "": 4, "U16": 2, "U8": 1}
    return collections.Counter(widths[width] for width in found)


def test_code_kernels_move_16_bytes_at_once():
    """Stores of 16 bytes, and what is read for each of them in one access, of a plane's two bytes in one a plane."""
    kernels = machine_code(CODES)
    assert len({name for _, name in kernels}) == 1 + 3 + 12 + 7 + 28
    for key, text in kernels.items():
        loads, stores = (accesses(text, op) for op in ("LDG", "STG"))
        match = re.search(r"(Pack|Unpack|Split|Join)WordsILi(\d)(?:ELi(\d))?", key[1])
        if match is None:
            read = 16 if "switch_bits" in key[1] else 4 if "kernelIfE" in key[1] else 8  # codes of 16 bytes stored
            assert loads[read] >= 7 and stores[16] >= 7, key  # batches of at least four, two and one
            continue
        kind, narrow = match[1], int(match[3] or match[2])  # bits of a code, or planes, of 128 codes a thread
        assert stores[16] >= {"Pack": narrow, "Unpack": 8, "Split": narrow, "Join": 4}[kind], key
        read, count = {"Pack": (16, 8), "Unpack": (2 * narrow, 8), "Split": (16, 8), "Join": (2, 4 * narrow)}[kind]
        assert loads[read] >= count, key


PATHS = [path for op in MANIFEST.values() for path in op.paths]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name.replace(" ", "-"))


@pytest.fixture
def facts(path):
    return counted()[path.name]


def test_no_two_paths_have_one_name_and_each_operator_has_one():
    assert len({path.name for path in PATHS}) == len(PATHS)
    operators = {name for op in MANIFEST.values() if op.cuda for name in op.raw}
    assert operators - {path.operator for path in PATHS} <= {"switched_linear_backward"}  # a column a thread: no stream


@every_path
def test_instructions_per_element(path, facts):
    """Of a round of the loop, or of all where there is none, against the code before; and of the whole call, where what
    stands around the rounds of a tensor of this size weighs more since a thread has fewer."""
    before = json.loads(BEFORE.read_text())["paths"][path.name]
    assert facts["round"] <= path.share * before["round"]
    assert facts["instructions"] <= 1.2 * before["instructions"]


@every_path
def test_fast_path_is_that_of_the_whole_tensor(path, facts):
    """Nobody counted another one: threads have all elements between them."""
    assert facts["elements"] * facts["rounds"] == facts["share"]


@every_path
def test_no_element_is_divided_or_needs_a_subroutine(path, facts):
    """A thread that goes straight through may divide once for a bit-width: its scale."""
    assert facts["divisions"] <= (path.levels if facts["round"] == facts["instructions"] else 0)
    assert facts["calls"] == 0


@every_path
def test_fast_path_moves_16_bytes_at_once(path, facts):
    assert {name: facts[f"wide_{name}"] for name in path.wide} == path.wide


@every_path
def test_enough_is_in_flight(path, facts):
    """Blocks that a multiprocessor holds, and what their threads have asked for before they wait."""
    assert facts["occupancy"] >= path.occupancy and facts["in_flight"] >= path.in_flight
    assert facts["local"] == 0


@every_path
def test_launches_of_a_call(path, facts):
    assert facts["launches"] <= path.launches


def test_counts_that_benchmarks_predict_from_are_those_of_the_code():
    written = json.loads(COUNTS.read_text())["paths"]
    found = {name: row["instructions"] for name, row in counted().items()}
    assert {name: row["instructions"] for name, row in written.items()} == pytest.approx(found, rel=0.05), (
        "python tests/machine_code.py writes them anew")
