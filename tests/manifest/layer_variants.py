"""Describe how the Triton kernels of logits, norms and layers are compiled ahead of time, as in variants.py."""

import itertools

from .entry import Variant
from .variants import BYTES

STORAGE = ("*fp32", "*bf16")


def logit_variants():
    from mbq_kernels.triton import _logit_rows as logit_rows

    common = {"options": logit_rows.OPTIONS, "at_least": True, "contracts": True}
    for x, (rows, block) in itertools.product(STORAGE, ((1, logit_rows.TILE), (2, 1024), (128, 16))):
        moved, shape = BYTES[x] * logit_rows.TILE // 256, {"UNIT": 8, "ROWS": rows, "BLOCK": block}
        types = {"x_ptr": x, "targets_ptr": "*i64", "rows_ptr": "*fp32", "count": "i32", "units": "i32",
                 "ignore_index": "i32", "smoothing": "fp32"}
        for smooth in (False, True):
            yield Variant(name=f"forward {x} {rows} {smooth}", kernel=logit_rows.logit_rows_forward_kernel,
                          types={**types, "loss_ptr": "*fp32", "el2n_ptr": "*fp32"}, reads=moved, **common,
                          constants={**shape, "STEPS": 3, "SMOOTH": smooth})
        yield Variant(name=f"backward {x} {rows}", kernel=logit_rows.logit_rows_backward_kernel, reads=moved,
                      writes=moved, types={**types, "grad_ptr": "*fp32", "grad_x_ptr": x}, constants=shape, **common)


def affine_norm_variants(positions_last):
    from mbq_kernels.triton._affine_norms import ALONG, affine_norms_kernel
    from mbq_kernels.triton._tiling import OPTIONS

    channels, positions = ALONG[positions_last]
    for x in STORAGE:
        yield Variant(name=x, kernel=affine_norms_kernel, reads=2 * BYTES[x] * channels * positions // 128,
                      types={"x_ptr": x, "grad_ptr": x, "parts_ptr": "*fp64", "width": "i32", "positions": "i32"},
                      constants={"WEIGHT": True, "BIAS": True, "POSITIONS_LAST": positions_last, "STEPS": 5,
                                 "BLOCK_C": channels, "BLOCK_P": positions},
                      options=OPTIONS, at_least=True, contracts=True)


def embedding_variants():
    from mbq_kernels.triton._tiling import OPTIONS
    from mbq_kernels.triton.sample_grad_norm_embedding import BLOCK_D, embedding_norms_kernel

    for x in STORAGE:
        yield Variant(name=x, kernel=embedding_norms_kernel, options=OPTIONS, at_least=True, contracts=True,
                      types={"order_ptr": "*i64", "ends_ptr": "*i32", "grad_ptr": x, "parts_ptr": "*fp64",
                             "width": "i32"}, constants={"POSITIONS": 64, "BLOCK_D": BLOCK_D})


# By layer: positions, inputs and outputs; windows; strides of activations and gradients, of which those that are 1 are
# constants and others multiples of 16 or of nothing: a contiguous linear layer, images of 28 x 28.
LAYERS = {"linear": ((256, 384, 1536), None, {"a_strides": (16, 0, 0, 16, 1), "g_strides": (16, 0, 16, 1)}),
          "conv": ((784, 1152, 128), (3, 3, 1, 1, 1, 1, 1, 1),
                   {"a_strides": (16, 16, 28, 1, 16), "g_strides": (16, 16, 1, 16)})}
IMAGES = {"linear": ("constexpr",) * 3, "conv": ("i32",) * 3}


def _sample(layer, name, kernel, types, constants, **facts):
    from mbq_kernels.triton._sample_grad_norm import OPTIONS

    strides = LAYERS[layer][2]
    types = {"positions": "i32", "groups": "i32", "slots": "i32", "sums_ptr": "*fp64", "image": IMAGES[layer], **types,
             **{given: tuple("constexpr" if stride == 1 else "i32" for stride in strides[given]) for given in strides}}
    ones = [("image", j) for j in range(3)] if layer == "linear" else []
    ones += [(given, j) for given in strides for j, stride in enumerate(strides[given]) if stride == 1]
    sixteens = [(given, j) for given in strides for j, stride in enumerate(strides[given]) if stride % 16 == 0]
    wide = {"reads": 16, "all_wide": True} if layer == "linear" else {}  # the windows of a convolution cannot be
    return Variant(name=name, kernel=kernel, types=types, constants={**constants, **dict.fromkeys(ones, 1)},
                   divisible=("positions", *sixteens), options=OPTIONS, at_least=True, contracts=True, **wide, **facts)


def sample_variants(layer):
    from mbq_kernels.triton import _sample_grad_norm as op
    from mbq_kernels.triton import _sample_kernels as kernels

    sizes, windows, _ = LAYERS[layer]
    positions, inputs, outputs = sizes
    for x in STORAGE:
        pointers, single = {"a_ptr": x, "g_ptr": x}, x == "*fp32"
        common = {"INPUTS": inputs, "OUTPUTS": outputs, "WINDOWS": windows, "PRECISION": "tf32x3"}
        tile, cores = op.tile_blocks(*sizes, single), {"tensor_cores": "tf32" if single else "bf16"}
        steps = {"STEPS": positions // tile["BLOCK_T"]}
        for factor in ({"factor_ptr": "*fp32"}, {}):
            yield _sample(layer, f"tiles {x} {factor}", kernels.tiles_kernel, {**pointers, **factor},
                          {**common, **steps, **tile, **({} if factor else {"factor_ptr": None})}, **cores)
        yield _sample(layer, f"bias {x}", kernels.bias_kernel, {"g_ptr": x},
                      {"OUTPUTS": outputs, **steps, **op.bias_blocks(positions, outputs)})
        yield _sample(layer, f"gram {x}", kernels.gram_kernel, pointers,
                      {**common, "BIAS": True, **op.gram_blocks(*sizes, single)}, **cores)
