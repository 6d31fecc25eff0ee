"""Random networks, converted in random ways and trained in a plain loop, compute the same wherever they are taken.

A few dozen fixed cases run by default; thousands of random ones by

    MBQ_EXAMPLES=2000 python -m pytest tests/test_train_properties.py

A case that fails is printed as `Falsifying example: ...(case=Case(...))`, as small as hypothesis can make it. To run it
again: put `@example(Case(...))` above the test.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from networks import one_thread  # noqa: F401
from properties import check, in_onnxruntime
from random_conversions import cases
from random_networks import Block, Case
from test_train_transposed_linear import transformers  # noqa: F401

from mbq_train.conversion import call_order
from mbq_train.quantize.bits import BitState
from mbq_train.quantize.quantizer import BaseWeightQuantizer
from mbq_train.quantize.scaled_quantizer import ScaledQuantizer

EXAMPLES = int(os.environ.get("MBQ_EXAMPLES", 0))


def drawn(count: int):
    """Settings of a test of `count` fixed cases, or of as many random ones as the environment says."""
    return settings(max_examples=EXAMPLES or count, derandomize=not EXAMPLES, database=None, deadline=None,
                    phases=(Phase.explicit, Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))


pytestmark = pytest.mark.filterwarnings("ignore")


@drawn(30)
@given(case=cases())
def test_a_trained_network_computes_the_same_everywhere(case):
    check(case)


@drawn(2)
@given(case=cases(quantizers=("learned", "double-rounding", "round-clamp")))
def test_onnx_in_a_default_session_computes_what_was_trained(case):
    check(case, [in_onnxruntime])


@pytest.mark.parametrize("case", [
    Case("vectors", (Block("linear"), Block("mlp", norm="batch", run="checkpoint"), Block("transposed")), bits=(8, 1),
         options={"group_size": 2, "activation_quantizer": "dynamic"}),
    Case("tokens", (Block("attention"), Block("linear", ties=True), Block("encoder", run="reentrant")), width=8,
         options={"quantizer": "double-rounding", "activation_quantizer": "dynamic", "symmetric": True})],
    ids=["groups", "double rounding"])
def test_networks_with_dynamic_ranges_compute_the_same_everywhere(case):
    check(case)


def _other_codes(quantizer, weight, bits):
    codes = quantizer.codes(weight, bits)
    return codes._replace(codes=codes.codes ^ 1)


FAULTS = {  # (where, name, what takes its place, what is said of it)
    "recomputation": (BitState, "restore", lambda state, snapshot: None, "gradient of"),
    "flags": (ScaledQuantizer, "_read", lambda quantizer: None, "must have seen a training batch"),
    "codes": (BaseWeightQuantizer, "store_codes", _other_codes, "store of stem"),
    "subclass": (call_order, "difference", lambda *args, **options: None, "32 bits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    """A recomputation at the bit-width in use, flags never read again, other codes, a subclass taken for its base."""
    place, name, value, told_of_it = FAULTS[fault]
    block = Block("linear", run="checkpoint", form="standardised" if fault == "subclass" else "plain")
    case = Case("vectors", (block,), example=fault == "subclass", options={"keep_float": ()})
    check(case)
    monkeypatch.setattr(place, name, value)
    with pytest.raises((AssertionError, RuntimeError), match=told_of_it):
        check(case)
