"""Random networks, converted in random ways and trained in a plain loop, compute the same wherever they are taken.

A few dozen fixed cases run by default; thousands of random ones by

    MBQ_EXAMPLES=2000 python -m pytest tests/test_train_properties.py

A case that fails is printed as `Falsifying example: ...(case=Case(...))`, as small as hypothesis can make it. To run it
again: `from random_networks import *; check(Case(...))`, or put it above the test as `@example(Case(...))`.
"""

import contextlib
import copy
import io
import os
import pickle
import re
import tempfile
from pathlib import Path

import mbq_store
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from mbq_train import (
    WeightBank,
    at_bits,
    deploy,
    export_onnx,
    export_store,
    load_checkpoint,
    save_checkpoint,
    set_bits,
)
from mbq_train.export.codes import quantized_layers
from mbq_train.quantize.quantizers import ActivationQuantizer, quantizers
from networks import one_thread  # noqa: F401
from random_networks import Case, cases
from test_train_transposed_linear import transformers  # noqa: F401
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

EXAMPLES = int(os.environ.get("MBQ_EXAMPLES", 0))
HOUSE_WORDING = re.compile(r"(?P<who>[^\s:]+): .+ must .+, got .+", re.DOTALL)
BOUND = 1e-4  # of the largest value, where sums are in another order


def drawn(count: int):
    """Settings of a test of `count` fixed cases, or of as many random ones as the environment says."""
    return settings(max_examples=EXAMPLES or count, derandomize=not EXAMPLES, database=None, deadline=None,
                    phases=(Phase.explicit, Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))


pytestmark = pytest.mark.filterwarnings("ignore")


@drawn(32)
@given(case=cases())
def test_a_trained_network_computes_the_same_everywhere(case):
    check(case)


@drawn(3)
@given(case=cases(quantizers=("learned", "double-rounding", "round-clamp")))
def test_onnx_in_a_default_session_computes_what_was_trained(case):
    check(case, [in_onnxruntime])


def check(case: Case, properties=None) -> None:
    """Convert and train the network of `case`, then see that each of `properties` [all but ONNX] holds."""
    model = trained(case)
    if model is None:
        return
    want = outputs(model, case)
    with tempfile.TemporaryDirectory() as folder:
        for holds in PROPERTIES if properties is None else properties:
            holds(case, model, want, Path(folder))
            same(outputs(model, case), want, f"the model itself after {holds.__name__}")


def trained(case: Case):
    """The model after two steps, or None where `convert` says that there is nothing to quantize."""
    x = case.inputs()
    source = case.network()
    before = {training: source.train(training)(x).detach() for training in (False, True)}
    source = case.network()
    try:
        model = case.convert(source)
    except ValueError as error:
        assert str(error).startswith("convert: model must hold a "), error
        event("nothing to quantize")
        return None
    if case.quantizer != "any-precision":
        set_bits(model, 32)
        for training, expected in before.items():
            close(copy.deepcopy(model).train(training)(x), expected, 1e-5, f"32 bits, training={training}")
    train(model, case)
    return model


def train(model, case: Case, steps: int = 2) -> None:
    """A loop that knows nothing of quantizers but `set_bits`."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        for bits in case.bits:
            set_bits(model.train(), bits)
            optimizer.zero_grad()
            loss = model(case.inputs()).square().mean()
            assert loss.isfinite()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def outputs(model, case: Case, bits=None) -> dict:
    """What `model` computes in eval mode at every bit-width; the bit-width it had stays."""
    modes = [(module, module.training) for module in model.modules()]
    found = {}
    for b in bits or (*case.bits, 32):
        with set_bits(model, b):
            found[b] = model.eval()(case.inputs())
    for module, training in modes:
        module.training = training
    return found


def same(got: dict, want: dict, what: str) -> None:
    for bits, value in got.items():
        assert torch.equal(value, want[bits]), f"{what} at {bits} bits: off by {gap(value, want[bits]):.2g}"


def close(got, want, bound: float, what: str) -> None:
    assert got.shape == want.shape and gap(got, want) <= bound, f"{what}: off by {gap(got, want):.2g}"


def gap(got, want) -> float:
    """The largest difference, of the largest value."""
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-3))


# Copies

def in_copies(case, model, want, folder):
    twin = copy.deepcopy(model)
    same(outputs(twin, case), want, "deepcopy")
    try:
        twin = pickle.loads(pickle.dumps(model))
    except RuntimeError as error:
        assert "parametrized modules" in str(error)  # torch refuses these
    same(outputs(twin, case), want, "pickle")
    twin.train()
    model_twin = copy.deepcopy(model).train()
    for bits in case.bits:
        with set_bits(twin, bits), set_bits(model_twin, bits):
            assert torch.equal(twin(case.inputs()), model_twin(case.inputs())), f"copy in training at {bits} bits"


def in_views(case, model, want, folder):
    set_bits(model, 32)
    for bits in (*case.bits, 32):
        view = at_bits(model, bits).eval()
        with torch.no_grad():
            same({bits: view(case.inputs())}, want, "at_bits")
    with set_bits(model, case.bits[-1]):
        same(outputs(model, case, case.bits[-1:]), want, "set_bits within set_bits")
    with torch.no_grad():
        mode, model.training = model.training, model.training
        same({32: copy.deepcopy(model).eval()(case.inputs())}, want, "after set_bits")


def in_averages(case, model, want, folder):
    for options in ({}, {"use_buffers": True}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
                    {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True}):
        average = AveragedModel(model, **options)
        for count in range(3):
            average.update_parameters(model)
            if count != 1:
                same(outputs(average, case), want, f"average of {count + 1}, {options}")


def in_functional_calls(case, model, want, folder):
    fresh = case.convert(case.network(seed=1)).eval()
    state = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    with torch.no_grad():
        for bits in (*case.bits, 32):
            with set_bits(fresh, bits), set_bits(model, bits):
                got = functional_call(fresh, state, (case.inputs(),))
                if case.of == "tokens":  # attention left in float sums in another order where tensors are no Parameters
                    ends(got, model, case, "functional_call")
                else:
                    same({bits: got}, want, "functional_call")


# Files

def in_state_dicts(case, model, want, folder):
    fresh = case.convert(case.network(seed=1))
    fresh.load_state_dict(model.state_dict())
    same(outputs(fresh, case), want, "load_state_dict")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = case.convert(case.network(seed=1))
    fresh.load_state_dict(torch.load(file), assign=True)
    same(outputs(fresh, case), want, "load_state_dict, assigned")


def from_float_states(case, model, want, folder):
    source = case.network(seed=2)
    source(case.inputs())
    fresh = case.convert(case.network(seed=1))
    fresh.load_state_dict(source.state_dict())
    if case.quantizer != "any-precision":
        set_bits(fresh.eval(), 32)
        close(fresh(case.inputs()), source.eval()(case.inputs()), 1e-5, "a float state at 32 bits")


def in_checkpoints(case, model, want, folder):
    with told(model, "save_checkpoint", expected="extra dict" in case.extras, about="_extra_state must be a tensor"):
        save_checkpoint(folder / "checkpoint", model)
        fresh = case.convert(case.network(seed=1))
        load_checkpoint(folder / "checkpoint", fresh)
        same(outputs(fresh, case), want, "load_checkpoint")


# Gradients

def with_checkpointing(case, model, want, folder):
    plain = copy.deepcopy(model)
    plain.runs = [""] * len(plain.runs)
    alike(gradients(copy.deepcopy(model), case), gradients(plain, case), "checkpointing")


def with_a_bank(case, model, want, folder):
    twin = copy.deepcopy(model)
    bank = WeightBank(twin, case.bits)
    bank.fill()
    same(outputs(twin, case), want, "WeightBank")
    bank.drop()
    alike(gradients(twin, case, bank), gradients(copy.deepcopy(model), case), "WeightBank")


def gradients(model, case: Case, bank=None) -> dict:
    """By name, of the summed losses of all bit-widths, whose backward comes when all forwards are over."""
    model.train().zero_grad()
    if bank:
        bank.fill()
    loss = 0
    for bits in case.bits:
        set_bits(model, bits)
        loss = loss + model(case.inputs()).square().mean()
    loss.backward()
    if bank:
        bank.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def alike(got: dict, want: dict, what: str) -> None:
    assert got.keys() == want.keys(), f"{what}: {got.keys() ^ want.keys()}"
    largest = max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        assert float((got[name] - value).abs().max()) <= 1e-5 * largest, f"{what}: gradient of {name}"


# Other forms

def in_stores(case, model, want, folder):
    uncalled = any(quantizer.missing for quantizer in quantizers(model))
    for bits in case.bits:
        wide = case.options.get("form") == "sign-magnitude" and (case.layer_bits == 8 or bits == 8)
        twice = case.quantizer == "double-rounding" and case.corrected
        with told(model, "export_store", expected=wide or twice or uncalled or "extra dict" in case.extras):
            export_store(model, folder / "store", bits=bits)
            layers = quantized_layers("store", model)
            with mbq_store.open(folder / "store") as store, set_bits(model, bits), torch.no_grad():
                assert set(store.layers) == set(layers)
                for name, layer in layers.items():
                    weight, b = layer.quantized_weight(), bits if case.quantizer == "double-rounding" else None
                    close(torch.from_numpy(store.dequantize(name, b)), weight, 1e-5 if case.corrected else 0,
                          f"store of {name} at {bits} bits")


def deployed(case, model, want, folder):
    for layout in ("codes", "planes"):
        twin = copy.deepcopy(model).eval()
        uncalled = any(quantizer.missing for quantizer in quantizers(model))
        with told(model, "deploy", expected=case.quantizer != "double-rounding" or case.corrected or uncalled):
            twin = deploy(twin, layout=layout)
            for bits in case.bits:
                with set_bits(model, bits), set_bits(twin, bits), torch.no_grad():
                    follow(model, twin, case, f"deployed as {layout} at {bits} bits")


def follow(model, twin, case: Case, what: str) -> None:
    """Each deployed layer, on what it is given, gives what the trained one gives, whose float layers are the same."""
    hooks, names = [], quantized_layers("deploy", model)
    for name, layer in names.items():
        def compare(_, args, out, layer=layer, name=name):
            close(out, layer(*args), 1e-5, f"{what}: {name}")
        hooks.append(twin.get_submodule(name).register_forward_hook(compare))
    got = twin(case.inputs())
    for hook in hooks:
        hook.remove()
    ends(got, model, case, what)


def in_onnxruntime(case, model, want, folder):
    uncalled = any(quantizer.missing for quantizer in quantizers(model))
    wide = case.options.get("form") == "sign-magnitude" and 8 in (case.bits[0], case.layer_bits)
    bits = case.bits[len(case.blocks) % len(case.bits)]
    twice = case.quantizer == "double-rounding" and case.corrected
    with told(model, "export_onnx", expected=wide or twice or uncalled):
        export_onnx(model, folder / "file.onnx", bits=bits, example=case.inputs())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "file.onnx", options, providers=["CPUExecutionProvider"])
        got, = session.run(None, {session.get_inputs()[0].name: case.inputs().numpy()})
        with set_bits(model, bits):
            ends(torch.from_numpy(got), model, case, f"onnxruntime at {bits} bits")


@torch.no_grad()
def ends(got, model, case: Case, what: str) -> None:
    """`got` is what `model` computes, unless a value lies so near to the middle between two codes that sums in another
    order may round it to the other."""
    near, hooks = [], []
    for quantizer in quantizers(model):
        if isinstance(quantizer, ActivationQuantizer):
            hooks.append(quantizer.register_forward_pre_hook(lambda quantizer, args: near.append(_near(quantizer, *args))))
    modes = [(module, module.training) for module in model.modules()]
    want = model.eval()(case.inputs())
    for hook in hooks:
        hook.remove()
    for module, training in modes:
        module.training = training
    if gap(got, want) > BOUND and any(near):
        event("a code may be another one")
        return
    close(got, want, BOUND, what)


def _near(quantizer, x) -> bool:
    if quantizer.bit_state.bits == 32:
        return False
    offset = 0 if quantizer.offsets is None else quantizer.offsets[str(quantizer.bits)]
    v = (x - offset) / quantizer.scale(quantizer.bits)
    middle = v if quantizer.bits == 1 and quantizer.signed else v - v.floor() - 0.5
    return bool((middle.abs() < 1e-5 * (1 + v.abs())).any())


@contextlib.contextmanager
def told(model, function: str, *, expected: bool, about: str = ""):
    """The block works, or, where `expected`, raises an error in the house wording that names function or layer."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        found = HOUSE_WORDING.fullmatch(str(error))
        names = {name for name, _ in model.named_modules()} | {function, "codes_of"}
        if not expected or not found or found["who"] not in names or about not in str(error):
            raise
        event(f"{function} refused")


PROPERTIES = [in_copies, in_views, in_averages, in_functional_calls, in_state_dicts, from_float_states, in_checkpoints,
              with_checkpointing, with_a_bank, in_stores, deployed]
