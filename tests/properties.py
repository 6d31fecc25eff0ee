"""What holds of every converted network: it computes the same in copies, files, views, stores and sessions."""

import copy
import io
import pickle
import tempfile
from pathlib import Path

import onnxruntime
import torch
from network_outputs import alike, alike_at_all_bits, close, ends, gradients, outputs, same, told, train, trained
from random_networks import Case
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mbq_store
from mbq_train import WeightBank, at_bits, deploy, export_onnx, export_store, load_checkpoint, save_checkpoint, set_bits
from mbq_train.export.quantized_layers import quantized_layers
from mbq_train.quantize.quantizer import quantizers


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


def in_copies(case, model, want, folder):
    twin = copy.deepcopy(model)
    same(outputs(twin, case), want, "deepcopy")
    try:
        twin = pickle.loads(pickle.dumps(model))
    except RuntimeError as error:
        assert "parametrized modules" in str(error)  # torch refuses these
    same(outputs(twin, case), want, "pickle")
    twins = [twin.train(), copy.deepcopy(model).train()]
    for bits in case.bits:
        found = []
        for twin in twins:
            torch.manual_seed(2)
            with set_bits(twin, bits):
                found.append(twin(case.inputs()))
        assert torch.equal(*found), f"a copy in training at {bits} bits"


def in_inference_mode(case, model, want, folder):
    with torch.inference_mode():
        same(outputs(model, case), want, "inference_mode")
        alike_at_all_bits(outputs(copy.deepcopy(model), case), model, want, case, "a copy made in inference_mode")


def on_the_meta_device(case, model, want, folder):
    if "buffer" in case.extras or case.example:
        return  # a forward on the meta device has no first values, and such a buffer no state
    with torch.device("meta"):
        fresh = case.convert(case.network(seed=1))
    fresh.load_state_dict(model.state_dict(), assign=True)
    same(outputs(fresh, case), want, "load_state_dict of a model on the meta device, assigned")


def in_views(case, model, want, folder):
    set_bits(model, 32)
    for bits in (*case.bits, 32):
        view = at_bits(model, bits).eval()
        with torch.no_grad():
            same({bits: view(case.inputs())}, want, "at_bits")
    with set_bits(model, case.bits[-1]):
        same(outputs(model, case, case.bits[-1:]), want, "set_bits within set_bits")
    with torch.no_grad():
        same({32: copy.deepcopy(model).eval()(case.inputs())}, want, "after set_bits")
    model = copy.deepcopy(model)  # statistics of batches are shared too
    expected = gradients(copy.deepcopy(model), case)
    model.zero_grad()
    torch.manual_seed(3)
    loss = sum(at_bits(model, bits).train()(case.inputs()).square().mean() for bits in case.bits)
    loss.backward()
    got = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    alike(got, expected, "at_bits", case)


def in_averages(case, model, want, folder):
    for options in ({}, {"use_buffers": True}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
                    {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True}):
        average = AveragedModel(model, **options)
        for count in range(3):
            average.update_parameters(model)
            if count != 1:
                same(outputs(average, case), want, f"average of {count + 1}, {options}")


def in_averages_of_a_training(case, model, want, folder):
    """Evaluate, or say which layer has no first values yet; the average of numbers is made of numbers."""
    model = case.convert(case.network())
    averages = [AveragedModel(model, use_buffers=use_buffers) for use_buffers in (False, True)]
    train(model, case, steps=1)
    for average in averages:
        average.update_parameters(model)  # the first is a copy
        same(outputs(average, case), outputs(model, case), "first average")
    train(model, case, steps=1)
    for average in averages:
        average.update_parameters(model)
        assert all(value.isfinite().all() for value in outputs(average, case).values())
    for (name, mean), value in zip(averages[0].module.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mean.isnan(), value.isnan()), f"average of {name}"


def in_functional_calls(case, model, want, folder):
    fresh = case.convert(case.network(seed=1)).eval()
    state = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    found = {}
    for bits in (*case.bits, 32):
        with set_bits(fresh, bits), torch.no_grad():
            found[bits] = functional_call(fresh, state, (case.inputs(),))
    alike_at_all_bits(found, model, want, case, "functional_call")


def in_state_dicts(case, model, want, folder):
    fresh = case.convert(case.network(seed=1))
    nn.Sequential(fresh).load_state_dict(nn.Sequential(model).state_dict())
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
    nn.Sequential(fresh).load_state_dict(nn.Sequential(source).state_dict())
    if case.quantizer != "any-precision":
        set_bits(fresh.eval(), 32)
        close(fresh(case.inputs()), source.eval()(case.inputs()), 1e-5 * case.looseness,
              "a float state at 32 bits")


def in_checkpoints(case, model, want, folder):
    with told(model, "save_checkpoint", expected="extra dict" in case.extras, about="_extra_state must be a tensor"):
        save_checkpoint(folder / "checkpoint", model)
        fresh = case.convert(case.network(seed=1))
        load_checkpoint(folder / "checkpoint", fresh)
        same(outputs(fresh, case), want, "load_checkpoint")


def with_checkpointing(case, model, want, folder):
    if any(block.form == "spectral norm" for block in case.blocks):
        return  # it changes in every forward, so in a recomputation too
    plain = copy.deepcopy(model)
    plain.runs = [""] * len(plain.runs)
    alike(gradients(copy.deepcopy(model), case), gradients(plain, case), "checkpointing", case)


def with_a_bank(case, model, want, folder):
    twin = copy.deepcopy(model)
    bank = WeightBank(twin, case.bits)
    bank.fill()
    same(outputs(twin, case), want, "WeightBank")
    bank.drop()
    alike(gradients(twin, case, bank), gradients(copy.deepcopy(model), case), "WeightBank", case)


def in_stores(case, model, want, folder):
    uncalled = any(quantizer.missing for quantizer in quantizers(model))
    for bits in case.bits:
        wide = case.options.get("form") == "sign-magnitude" and (case.layer_bits == 8 or bits == 8)
        twice = case.quantizer == "double-rounding" and case.corrected
        with told(model, "export_store", expected=wide or twice or uncalled or "extra dict" in case.extras or
                  case.dtype == torch.float64 or "group_size" in case.options):
            other = "planes" if case.quantizer == "double-rounding" else "packed"
            export_store(model, folder / "store", bits=bits, layout=other if bits % 2 else "codes")
            layers = quantized_layers("store", model)
            with mbq_store.open(folder / "store") as file, set_bits(model, bits), torch.no_grad():
                assert set(file.layers) == set(layers)
                for name, layer in layers.items():
                    weight, b = layer.quantized_weight(), bits if case.quantizer == "double-rounding" else None
                    close(torch.from_numpy(file.dequantize(name, b)).to(case.dtype), weight,
                          1e-5 * case.looseness if case.corrected else 0, f"store of {name} at {bits} bits")


def deployed(case, model, want, folder):
    for layout in ("codes", "planes"):
        twin = copy.deepcopy(model).eval()
        uncalled = any(quantizer.missing for quantizer in quantizers(model))
        with told(model, "deploy", expected=case.quantizer != "double-rounding" or case.corrected or uncalled or
                  case.dtype == torch.float64):
            twin = deploy(twin, layout=layout)
            for bits in case.bits:
                with set_bits(model, bits), set_bits(twin, bits), torch.no_grad():
                    follow(model, twin, case, f"deployed as {layout} at {bits} bits")


def follow(model, twin, case: Case, what: str) -> None:
    """Each deployed layer, on what it is given, gives what the trained one gives, whose float layers are the same."""
    hooks, names = [], quantized_layers("deploy", model)
    for name, layer in names.items():
        def compare(_, args, out, layer=layer, name=name):
            close(out, layer(*args), 1e-5 * case.looseness, f"{what}: {name}")
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
    with told(model, "export_onnx", expected=wide or twice or uncalled or case.dtype != torch.float32):
        export_onnx(model, folder / "file.onnx", bits=bits, example=case.inputs())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "file.onnx", options, providers=["CPUExecutionProvider"])
        got, = session.run(None, {session.get_inputs()[0].name: case.inputs().numpy()})
        with set_bits(model, bits):
            ends(torch.from_numpy(got), model, case, f"onnxruntime at {bits} bits")


PROPERTIES = [in_copies, in_inference_mode, in_views, in_averages, in_averages_of_a_training, in_functional_calls,
              in_state_dicts, on_the_meta_device, from_float_states, in_checkpoints, with_checkpointing, with_a_bank,
              in_stores, deployed]
