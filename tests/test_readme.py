"""The lines of the README that are said to run."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from foreign import package
from networks import one_thread, small_network  # noqa: F401
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

import mbq_train
from mbq_lab.command.app import app
from mbq_train import get_bits

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(section):
    """(language, text) of every block of code below a heading."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def test_from_training_to_any_bit_width(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks("From training to an int8 store to any bit-width"):
        if language == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "mbq"
            short = ["--epochs", "1", "--float-epochs", "1"] if words[1] == "train" else []
            done = CliRunner().invoke(app, words[1:] + short)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-4bit.onnx", "model-4bit.safetensors",
                                                                "model.safetensors", "runs"]
    assert names["weight"].any() and names["logits"].shape == (5, 10)


def test_in_your_own_loop():
    loop, trainer = (text for language, text in blocks("In your own loop") if language == "python")
    torch.manual_seed(0)
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))) for _ in range(2)]
    names = {**vars(mbq_train), "torch": torch, "F": F, "checkpoint": checkpoint, "AveragedModel": AveragedModel,
             "get_ema_multi_avg_fn": get_ema_multi_avg_fn, "network": small_network(), "images": batches[0][0],
             "batches": batches}
    exec(loop, names)
    assert names["logits"].shape == (8, 3) and names["logits"].isfinite().all() and get_bits(names["average"]) != 4
    assert len(README.split("\n## In your own loop\n")[1].split("\n## ")[0].splitlines()) <= 40


def test_a_supernet_in_a_loop_of_ones_own():
    (loop,) = (text for language, text in blocks("Mixed precision from one training: HASB") if language == "python")
    torch.manual_seed(0)
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))) for _ in range(2)]
    names = {**vars(mbq_train), "torch": torch, "F": F, "network": small_network(), "images": batches[0][0],
             "batches": batches}
    exec(loop, names)
    assert names["step"] == 8 and not mbq_train.own_layer_bits(names["model"])


def test_bit_widths_of_layers_within_limits():
    code, = (text for language, text in blocks("Which layer gets which bit-width: `allocate`") if language == "python")
    torch.manual_seed(0)
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))) for _ in range(2)]
    model = mbq_train.convert(small_network(), (8, 4, 2), example=batches[0][0])
    names = {**vars(mbq_train), "model": model, "images": batches[0][0], "batches": batches}
    exec(code, names)
    assert mbq_train.own_layer_bits(model) == names["found"].bits and names["found"].mean_bits <= 4


def test_replace_slow_fake_quantization(capsys):
    (language, text), = blocks("Replace slow fake-quantization in a model you have")
    names = {}
    exec(text, names)
    printed = capsys.readouterr().out
    assert language == "python" and "modules replaced" in printed and " x" in printed
    assert torch.equal(names["x_hat"], torch.fake_quantize_per_tensor_affine(names["images"], 0.02, 128, 0, 255))
    assert names["quantized"](names["images"]).isfinite().all()


def test_the_trainer_of_in_your_own_loop(tmp_path):
    transformers = package("transformers")
    pytest.importorskip("accelerate")
    _, trainer = (text for language, text in blocks("In your own loop") if language == "python")
    names = {**vars(mbq_train), "transformers": transformers}
    exec(trainer, names)
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      intermediate_size=16)
    tokens = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    torch.manual_seed(0)
    model = mbq_train.convert(transformers.LlamaForCausalLM(config), (8, 4),
                              example={"input_ids": tokens[0]["input_ids"][None]})
    optimizer = torch.optim.AdamW(mbq_train.parameter_groups(model, 0.1), 1e-3)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    arguments = transformers.TrainingArguments(tmp_path, per_device_train_batch_size=4, max_steps=2, report_to=[],
                                               use_cpu=True, gradient_checkpointing=True, save_strategy="no")
    names["MultiBitTrainer"](model, arguments, train_dataset=tokens, optimizers=(optimizer, None)).train()
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert all(any(f".scales.{bits}" in name for name in moved) for bits in (8, 4))
