"""Activation checkpointing: a block that runs again in backward has the bit-width and the weights of its forward."""

import inspect
import threading
from types import MappingProxyType

import pytest
import torch
from networks import one_thread, specs  # noqa: F401
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import mbq_kernels
from mbq_train import WeightBank, at_bits, convert, initialise, set_bits, set_layer_bits

BITS = (8, 2)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def nested(use_reentrant):
    def run(model, x):
        def inner(y):
            return checkpoint(model[3:], y, use_reentrant=use_reentrant)
        return checkpoint(lambda y: inner(model[:3](y)), x, use_reentrant=use_reentrant)
    return run


RUNS = {
    "not reentrant": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
    "sequential": lambda model, x: checkpoint_sequential(model, 3, x, use_reentrant=False),
    "sequential, reentrant": lambda model, x: checkpoint_sequential(model, 3, x, use_reentrant=True),
    "nested": nested(False),
    "nested, reentrant": nested(True),
    "twice": lambda model, x: checkpoint(model, x, use_reentrant=False) + checkpoint(model, x, use_reentrant=True),
}


def gradients(run, *, bank=False, first_values=True, own=MappingProxyType({}), **options):
    """Gradients by name of the summed losses of both bit-widths, whose backward comes when both forwards are over."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    model = convert(network(), BITS, **specs(**options))
    if first_values:
        initialise(model, x)
    weights = WeightBank(model, BITS) if bank else None
    if bank:
        weights.fill()
    loss = 0
    for bits in BITS:
        set_bits(model, bits)
        set_layer_bits(model, own.get(bits, {}))
        loss = loss + run(model, x.clone().requires_grad_()).square().mean()
    loss.backward()
    if bank:
        weights.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def composable(model, x):
    """torch's checkpoint for modules, which calls the generator of torch.utils.checkpoint by a name of its own."""
    from torch.distributed._composable import checkpoint as of_module
    if not hasattr(model, "composed"):
        of_module(model[3])
        model.composed = True
    return model(x)


RUNS["of a module"] = composable


def plainly(name):
    return (lambda model, x: model(x) + model(x)) if name == "twice" else (lambda model, x: model(x))


@pytest.mark.parametrize("bank", [False, True], ids=["weights", "bank"])
@pytest.mark.parametrize("quantizer", ["learned", "double-rounding", "round-clamp"])
@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_those_without_checkpoints(name, quantizer, bank):
    options = {"quantizer": quantizer, "bank": bank}
    expected, got = gradients(plainly(name), **options), gradients(RUNS[name], **options)
    assert expected.keys() == got.keys()
    for parameter, grad in expected.items():
        torch.testing.assert_close(got[parameter], grad, rtol=1e-5, atol=1e-8)


OWN = {8: {"3": 2}, 2: {"3": None, "5": 8}}  # for the forwards of each bit-width; the last is in use in backward


@pytest.mark.parametrize("quantizer", ["learned", "double-rounding", "round-clamp"])
@pytest.mark.parametrize("name", RUNS)
def test_layers_run_again_at_bit_widths_of_their_own(name, quantizer):
    expected, got = (gradients(run, quantizer=quantizer, own=OWN) for run in (plainly(name), RUNS[name]))
    others = gradients(plainly(name), quantizer=quantizer)
    assert expected.keys() == got.keys() and any(not torch.equal(expected[part], others[part]) for part in others
                                                 if part in expected)
    for parameter, grad in expected.items():
        torch.testing.assert_close(got[parameter], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["not reentrant", "reentrant"])
def test_first_values_are_taken_once(name):
    expected, got = (gradients(run, first_values=False) for run in (plainly(name), RUNS[name]))
    for parameter, grad in expected.items():
        torch.testing.assert_close(got[parameter], grad, rtol=1e-5, atol=1e-8)


def test_a_compiled_block_runs_again_at_its_bit_width():
    def run(model, x):
        return checkpoint(compiled[model], x, use_reentrant=False)

    class Compiled(dict):
        def __missing__(self, model):
            self[model] = torch.compile(model, backend="aot_eager", fullgraph=True)
            return self[model]

    compiled = Compiled()
    expected, got = gradients(plainly("not reentrant"), batch_norm="shared"), gradients(run, batch_norm="shared")
    for parameter, grad in expected.items():
        torch.testing.assert_close(got[parameter], grad, rtol=1e-4, atol=1e-7)


class OwnRecomputation(torch.autograd.Function):
    """What invertible networks and other checkpointing libraries do."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.model = model
        ctx.save_for_backward(x)
        return model(x).detach()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            ctx.model(x).backward(grad)
        return x.grad, None


def test_recomputation_by_others_raises_once_the_bit_width_changed():
    x = torch.randn(8, 6)
    model = convert(network(), BITS, example=x)
    OwnRecomputation.apply(x.clone().requires_grad_(), model).sum().backward()  # it only ever had one bit-width
    set_bits(model, 2)
    with pytest.raises(RuntimeError, match="a forward within backward must be a recomputation of torch.utils"):
        OwnRecomputation.apply(x.clone().requires_grad_(), model).sum().backward()


def test_a_view_of_another_thread_keeps_its_bit_width_while_a_block_runs_again():
    x = torch.randn(64, 6)
    model = convert(network(), BITS, example=x)
    expected = {}
    for bits in BITS:
        set_bits(model.eval(), bits)
        expected[bits] = model(x).detach()
    wrong, stop = [], threading.Event()

    def evaluate():
        view = at_bits(model, 8)
        while not stop.is_set():
            for bits in BITS:
                set_bits(view, bits)
                with torch.no_grad():
                    wrong.append(not torch.equal(view(x), expected[bits]))

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        for step in range(60):
            set_bits(model, BITS[step % 2])
            checkpoint(model, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
    finally:
        stop.set()
        thread.join()
    assert len(wrong) > 10 and not any(wrong)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_block_of_another_thread_than_that_of_set_bits_runs_again_at_its_bit_width(use_reentrant):
    x = torch.randn(8, 6)
    model, grads = convert(network(), BITS, example=x), []
    for run in (lambda: model(x), lambda: checkpoint(model, x.clone().requires_grad_(), use_reentrant=use_reentrant)):
        model.zero_grad()
        set_bits(model, 8)
        losses = []
        thread = threading.Thread(target=lambda run=run, losses=losses: losses.append(run().square().sum()))
        thread.start()
        thread.join()
        set_bits(model, 2)
        losses[0].backward()
        grads.append(model[3].weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_the_names_that_are_wrapped_are_those_of_this_torch():
    assert torch_checkpoint._mbq_follows
    assert torch_checkpoint.CheckpointFunction.forward.__wrapped__.__code__.co_varnames[:2] == ("ctx", "run_function")
    wrapped = torch_checkpoint._checkpoint_without_reentrant_generator.__wrapped__
    assert wrapped.__code__.co_varnames[0] == "fn"
    names = inspect.unwrap(torch_checkpoint.checkpoint).__code__.co_names
    assert "_checkpoint_without_reentrant_generator" in names and "CheckpointFunction" in names
    assert torch._C._current_graph_task_id() == -1


def _quantized_weights(x):
    """Every kernel of several bit-widths or tensors, whose backward has more inputs than it reads once."""
    scale = torch.full((2, len(x)), 0.1, requires_grad=True)
    values = [*mbq_kernels.fake_quantize_multi(x, scale, bits=BITS, axis=0),
              *mbq_kernels.fake_quantize_corrected(x, scale, bits=BITS, axis=0),
              mbq_kernels.fake_quantize_corrected(x, scale[0], bits=2, axis=0),
              *mbq_kernels.fake_quantize_foreach([x], [list(scale)], bits=BITS, axis=0)[0],
              *mbq_kernels.double_round(x, scale[0], bits=BITS, axis=0),
              *mbq_kernels.round_clamp_lsb_foreach([x], limits=[x.detach().abs().max()], bits=[4])[0]]
    return sum((value.square().sum() for value in values), torch.zeros(()))


def test_kernels_of_several_bit_widths_run_again_without_reentry():
    """There a saved tensor can be read once."""
    gradients = []
    for run in (_quantized_weights, lambda x: checkpoint(_quantized_weights, x, use_reentrant=False)):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
        run(x).backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
