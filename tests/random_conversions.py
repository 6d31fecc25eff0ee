"""Hypothesis strategies that draw random networks and ways to convert them."""

import torch
from hypothesis import strategies as st
from odd_layers import FORMS
from random_networks import ACTIVATIONS, CONVOLUTIONS, EXTRAS, KINDS, NORMS, SHAPES, Block, Case, Convolution

from mbq_train import Float, Learned


def _mostly(usual, *others):
    return st.one_of(st.just(usual), st.sampled_from((usual, *others)))


CONVOLUTION = st.builds(
    Convolution, kernel=st.integers(1, 3), stride=_mostly(1, 2), padding=st.sampled_from((0, 1, 2, "same")),
    dilation=_mostly(1, 2), groups=_mostly("one", "two", "depthwise"),
    mode=_mostly("zeros", "reflect", "replicate", "circular"))


def _blocks(of: str):
    rare = _mostly(False, True)
    return st.lists(st.builds(
        Block, kind=st.sampled_from(KINDS[of]), form=_mostly(*FORMS), bias=st.booleans(),
        norm=st.sampled_from(("", *NORMS[of])), norm_first=st.booleans(),
        activation=st.sampled_from(tuple(ACTIVATIONS)),
        residual=st.booleans(), dropout=rare, run=_mostly("", "checkpoint", "reentrant"), shares=rare, ties=rare,
        convolution=CONVOLUTION if of in CONVOLUTIONS else st.just(Convolution())), min_size=1, max_size=4).map(tuple)


@st.composite
def conversions(draw, quantizers=("learned", "double-rounding", "any-precision", "round-clamp")) -> dict:
    """The fields of a Case that say how it is converted."""
    quantizer = draw(st.sampled_from(quantizers))
    lowest = 2 if quantizer == "double-rounding" else 1
    bits = draw(st.sets(st.integers(lowest, 8), min_size=1, max_size=3))
    options = {"quantizer": quantizer, "batch_norm": draw(_mostly("per_bit", "shared")),
               "keep_float": draw(st.sampled_from((("first", "last"), (), ("first",), ("last",), ("head",))))}
    if quantizer != "any-precision":
        options |= {"learn_offset": draw(st.booleans()), "activation_bits": draw(_mostly(None, 32, *range(1, 9)))}
    if quantizer != "round-clamp":
        options["weight_correction"] = draw(_mostly(False, True))
    if quantizer == "double-rounding":
        options |= {"rounding": draw(st.sampled_from(("half_even", "half_up"))), "scale_chain": draw(st.booleans()),
                    "shared_sum": draw(st.booleans())}
    layer_bits = None
    if quantizer == "round-clamp":
        options |= {"form": draw(st.sampled_from(("offset", "sign-magnitude"))),
                    "normalise": draw(_mostly("max", "tanh"))}
        layer_bits = draw(_mostly(None, *range(1, 9)))
    rules = [{"activations": Float()}]
    if quantizer != "any-precision":
        rules.append({"activations": Learned(signed=True)})
    options["rules"] = draw(_mostly((), *((("*", rule),) for rule in rules)))
    return {"bits": tuple(sorted(bits, reverse=True)), "example": draw(st.booleans()), "layer_bits": layer_bits,
            "options": options}


@st.composite
def cases(draw, **restricted) -> Case:
    """Any Case; `restricted` as for `conversions`."""
    of = draw(st.sampled_from(tuple(SHAPES)))
    return Case(of=of, blocks=draw(_blocks(of)), width=draw(st.sampled_from((2, 3, 4, 6, 8))),
                extras=draw(st.frozensets(st.sampled_from(EXTRAS), max_size=2)), gain=draw(_mostly(1.0, 1e-4, 1e4)),
                dtype=draw(_mostly(torch.float32, torch.float32, torch.float64, torch.bfloat16)),
                **draw(conversions(**restricted)))
