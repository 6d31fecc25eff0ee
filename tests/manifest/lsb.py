"""round_clamp and the ops on its least significant bits."""

import torch

import mbq_kernels as mbq

from .entry import CODES, FLOATS, Op, row
from .paths import PATHS
from .sweeps import over_weights
from .variants import count_variants, lsb_forward_variants, lsb_gradient_variants

X, LIMIT = torch.randn(4, 33), torch.ones(4)
ONE = torch.ones(1)


def options(x, bits):
    """Options of a weight with an axis; with k below them there are no 1 and 2 bits."""
    return {"bits": max(bits, 3), "limit": x.detach().abs().amax(1), "axis": 0}


def clamped(x, scale, bits=4):
    return row(scale, mbq.round_clamp(x, **options(x, bits)),
               mbq.round_clamp(x, form="sign-magnitude", **options(x, bits)))


def residual(codes, scale, bits=4):
    return mbq.extract_lsb(codes.float(), bits=bits, limit=scale + 128, axis=0)


def penalty(x, scale, bits=4):
    return row(scale, *mbq.lsb_penalty(x, k=2, form="sign-magnitude", **options(x, bits)))


def clamped_lsb(x, scale, bits=4):
    return row(scale, *mbq.round_clamp_lsb(x, **options(x, bits)))


def clamped_foreach(x, scale, bits=4):
    given = options(x, bits)
    values, penalties, rates = mbq.round_clamp_lsb_foreach(
        [x, x * 2], bits=[given["bits"], 4], k=[2, 1], limits=[given["limit"], given["limit"].amax() * 2], axis=0,
        form="sign-magnitude")
    return row(scale, *values, penalties, rates)


def nines(x, rows=None):
    """A limit for each row of x, or the one of `rows`."""
    return x.new_full((rows or x.shape[0],), 9.0)


ROUND_CLAMP = Op(
    name="round_clamp", call=clamped, data=FLOATS, differentiable=True,
    raw={"round_clamp_forward": lambda x, s: dict(x=x, limit=nines(x), bits=4, axis=0, sign_magnitude=False)},
    malformed={"bits": ("round_clamp_forward", {"bits": 9}),
               "an axis without limit": ("round_clamp_forward", {"limit": None})},
    aot=lsb_forward_variants("value_ptr"),
    on_host="test_cuda_lsb_on_host.test_lsb",
    paths=PATHS["round_clamp"],
    sanitize=over_weights(lambda x, axis, limit: [
        mbq.round_clamp(x, bits=4, limit=limit, axis=axis, form="sign-magnitude")]))

EXTRACT_LSB = Op(
    name="extract_lsb", call=residual, data=CODES, bits=range(2, 9),
    raw={"extract_lsb_forward": lambda c, s: dict(x=c.float(), limit=s + 128, bits=4, k=2, axis=0,
                                                  sign_magnitude=True)},
    malformed={"k": ("extract_lsb_forward", {"k": 4})},
    aot=lsb_forward_variants("residual_ptr"),
    on_host="test_cuda_lsb_on_host.test_lsb",
    paths=PATHS["extract_lsb"],
    sanitize=over_weights(lambda x, axis, limit: [
        mbq.extract_lsb(x, bits=8, k=3, limit=limit, axis=axis, form="sign-magnitude")]))

LSB_PENALTY = Op(
    name="lsb_penalty", call=penalty, data=FLOATS, differentiable=True,
    raw={
        "lsb_penalty_forward": lambda x, s: dict(x=x, limit=nines(x), bits=4, k=2, axis=0, sign_magnitude=True),
        "lsb_penalty_backward": lambda x, s: dict(
            grad=s[0], x=x, limit=nines(x), bits=4, k=1, axis=0, sign_magnitude=False, unit_gradient=True)},
    malformed={
        "k": ("lsb_penalty_forward", {"k": 4}),
        "too few limits": ("lsb_penalty_forward", {"limit": LIMIT[:2]}),
        "bfloat16 gradient": ("lsb_penalty_backward", {"grad": ONE[0].bfloat16()})},
    aot=lambda: (*lsb_forward_variants("counts_ptr")(), *lsb_gradient_variants(with_task=False)(), *count_variants()),
    on_host="test_cuda_lsb_on_host.test_gradients",
    paths=PATHS["lsb_penalty"],
    sanitize=over_weights(lambda x, axis, limit: [
        mbq.lsb_penalty(x, bits=4, limit=limit, axis=axis, form="sign-magnitude")[0]]))

ROUND_CLAMP_LSB = Op(
    name="round_clamp_lsb", call=clamped_lsb, data=FLOATS, differentiable=True,
    raw={
        "round_clamp_lsb_forward": lambda x, s: dict(x=x, limit=nines(x), bits=8, k=1, axis=0, sign_magnitude=False),
        "round_clamp_lsb_backward": lambda x, s: dict(
            grad=x * 2, grad_penalty=s[0], x=x, limit=nines(x), bits=8, k=3, axis=0, sign_magnitude=True,
            unit_gradient=False)},
    malformed={
        "bfloat16 limit": ("round_clamp_lsb_forward", {"limit": LIMIT.bfloat16()}),
        "gradient of another shape": ("round_clamp_lsb_backward", {"grad": X[:1]}),
        "gradient of another dtype": ("round_clamp_lsb_backward", {"grad": X.half()})},
    aot=lambda: (*lsb_forward_variants("value_ptr", "counts_ptr")(), *lsb_gradient_variants(with_task=True)()),
    on_host="test_cuda_lsb_on_host.test_gradients",
    paths=PATHS["round_clamp_lsb"],
    sanitize=over_weights(lambda x, axis, limit: [
        *mbq.round_clamp_lsb(x, bits=8, k=2, limit=limit, axis=axis)[:2]]))


def _many(x, axis, limit):
    values, penalties, _ = mbq.round_clamp_lsb_foreach([x] * 300, bits=8, k=2, limits=[limit] * 300, axis=axis)
    return values[299], penalties


ROUND_CLAMP_LSB_FOREACH = Op(
    name="round_clamp_lsb_foreach", call=clamped_foreach, data=FLOATS, differentiable=True,
    raw={
        "round_clamp_lsb_foreach_forward": lambda x, s: dict(
            xs=[x, x[:2]], limits=[nines(x), nines(x, 1)], bits=[4, 8], k=[1, 2], axes=[0, -1], sign_magnitude=True),
        "round_clamp_lsb_foreach_backward": lambda x, s: dict(
            grads=[x * 2, x[2:]], grad_penalties=s[:2], xs=[x, x[:2]], limits=[nines(x), nines(x, 1)], bits=[4, 8],
            k=[1, 2], axes=[0, -1], sign_magnitude=True, unit_gradient=False)},
    malformed={
        "no x": ("round_clamp_lsb_foreach_backward",
                 {"grad_penalties": ONE[:0]} | dict.fromkeys(("grads", "xs", "limits", "bits", "k", "axes"), [])),
        "bits too few": ("round_clamp_lsb_foreach_forward", {"bits": [4]}),
        "x of two dtypes": ("round_clamp_lsb_foreach_forward", {"xs": [X, X[:2].half()]}),
        "a penalty too few": ("round_clamp_lsb_foreach_backward", {"grad_penalties": ONE}),
        "no gradients": ("round_clamp_lsb_foreach_backward", {"grads": []})},
    aot="round_clamp_lsb",
    on_host="test_cuda_on_host.test_every_block_works_for_its_item",
    paths=PATHS["round_clamp_lsb_foreach"],
    sanitize=over_weights(_many))

OPS = [ROUND_CLAMP, EXTRACT_LSB, LSB_PENALTY, ROUND_CLAMP_LSB, ROUND_CLAMP_LSB_FOREACH]
