"""The regulariser on least significant bits as it is written in eager PyTorch, and compiled."""

import torch
from harness import FORWARD, Candidate

EAGER, COMPILED, NETWORK = "eager LSB", "torch.compile(eager LSB)", "torch.compile(eager LSB), all layers in one"
CALLS = "mbq round_clamp_lsb, a call each"
BITS, K = 8, 1


def code(u, bits):
    return (u * 2**bits).round().clamp(max=2**bits - 1)


def position(x, limit):
    return x / (2 * limit) + 0.5


def value(x, limit):
    return (code(position(x, limit), BITS) - 2 ** (BITS - 1)) * (limit * 2.0 ** (1 - BITS))


def residual(x, limit):
    u = position(x, limit)
    return (code(u, BITS) - 2**K * code(u, BITS - K)).to(torch.int8)


def penalty(x, limit):
    """(sum |B|, rate): the fine code straight through, the coarse one a constant"""
    u = position(x.float(), limit)
    steps = u * 2**BITS
    fine = steps + (code(u, BITS) - steps).detach()
    lsb = fine - 2**K * code(u.detach(), BITS - K)
    return lsb.abs().sum(), (lsb.detach() != 0).float().mean()


def both(x, limit):
    """(value, sum |B|, rate)"""
    return x + (value(x.float(), limit).to(x.dtype) - x).detach(), *penalty(x, limit)


def results(outputs):
    """Those that are compared and have gradients: all but the rate, which every candidate computes."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs[:-1])


def one_tensor(function):
    """Candidate.build of a function of one x and its limit."""
    return lambda case, inputs: (lambda: results(function(inputs.xs[0], inputs.limits[0])), inputs.xs)


def each_tensor(function):
    """Candidate.build of the same for many: values in their order, then all penalties."""
    def build(case, inputs):
        def call():
            rows = [function(x, limit) for x, limit in zip(inputs.xs, inputs.limits, strict=True)]
            return [*(row[0] for row in rows), torch.stack([row[1] for row in rows])]
        return call, inputs.xs
    return build


def whole_network(case, inputs):
    def function(xs, limits):
        rows = [both(x, limit) for x, limit in zip(xs, limits, strict=True)]
        return [row[0] for row in rows], torch.stack([row[1] for row in rows]), torch.stack([row[2] for row in rows])
    compiled = torch.compile(function)

    def call():
        values, penalties, _ = compiled(inputs.xs, inputs.limits)
        return [*values, penalties]
    return call, inputs.xs


def many_rivals(ours_one):
    """Case.rivals of many tensors; `ours_one` is round_clamp_lsb of one x."""
    return lambda case: [
        Candidate(EAGER, each_tensor(both)), Candidate(CALLS, each_tensor(ours_one)),
        Candidate(COMPILED, lambda case, inputs: each_tensor(torch.compile(both))(case, inputs), compiles=True),
        Candidate(NETWORK, whole_network, compiles=True)]


def one_rivals(formula):
    """Case.rivals of one tensor: the formula and torch.compile of it."""
    def rivals(case):
        exact = case.what == FORWARD
        return [Candidate(EAGER, one_tensor(formula), exact=exact),
                Candidate(COMPILED, lambda case, inputs: one_tensor(torch.compile(formula))(case, inputs), exact=exact,
                          compiles=True)]
    return rivals
