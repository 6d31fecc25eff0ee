"""Every raw operator under opcheck in every layout, and with arguments that its op would never hand it."""

import pytest
import torch
from manifest import LAYOUTS, MANIFEST

RAW = [pytest.param(op.name, raw, id=raw) for op in MANIFEST.values() for raw in op.raw]
MALFORMED = [pytest.param(op.name, what, id=f"{op.name}: {what}") for op in MANIFEST.values() for what in op.malformed]


@pytest.mark.parametrize("op, raw", RAW)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(device, op, raw, layout):
    entry, kernel = MANIFEST[op], getattr(torch.ops.mbq, raw).default
    arguments = entry.raw[raw](*entry.data.laid_out(device, layout))
    torch.library.opcheck(kernel, [arguments.pop(argument.name) for argument in kernel._schema.arguments])
    assert not arguments, f"{raw} takes no {', '.join(arguments)}"


@pytest.mark.parametrize("op, what", MALFORMED)
def test_compiled_code_reads_nothing_it_was_not_given(op, what):
    """Raw operators are private, but what reaches them wrongly is an error, not a read outside memory."""
    entry = MANIFEST[op]
    raw, changes = entry.malformed[what]
    kernel, arguments = getattr(torch.ops.mbq, raw), entry.raw[raw](*entry.data.laid_out("cpu", "contiguous"))
    kernel(**arguments)
    assert changes.keys() <= arguments.keys()
    with pytest.raises(RuntimeError, match=f"^{raw.rpartition('_')[0]}: "):
        kernel(**arguments | changes)
