"""Other people's wrappers for many processes: DistributedDataParallel with its defaults, FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from networks import one_thread  # noqa: F401
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mbq_train import DoubleRounding, convert, drop_idle_gradients, initialise, scales, set_bits

ROOT = Path(__file__).resolve().parent.parent
BITS = (8, 4, 2)
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))


class Network(nn.Module):
    """Its BatchNorm is in eval mode, because each process would see its own part of the batch."""

    def __init__(self, norm=nn.BatchNorm1d, seed=1, checkpoints=False):
        super().__init__()
        self.checkpoints = checkpoints
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                  nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        if not self.checkpoints:
            return self.body(x)
        x = checkpoint(self.body[1:4], self.body[0](x), use_reentrant=True)
        return self.body[6:](checkpoint(self.body[4:6], x, use_reentrant=False))

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def train(model, x, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        for bits in BITS:
            set_bits(model, bits)
            optimizer.zero_grad()
            model(x).float().square().mean().backward()
            drop_idle_gradients(model, [bits])  # zeros, of compiled models
            optimizer.step()


def plain(norm, dtype):
    model = Network(norm).to(dtype).train()
    convert(model, BITS, weights=DoubleRounding())
    if norm is nn.LayerNorm:  # as before fully_shard; elsewhere each bit-width's first forward takes its own
        initialise(model, X.to(dtype))
    train(model, X.to(dtype))
    return model


def in_ddp(x, rank):
    """Different seeds: the wrapper gives all processes the weights of the first, and so it must be with the scales."""
    model = convert(Network(seed=1 + rank).train(), BITS, weights=DoubleRounding())
    train(DistributedDataParallel(model), x)
    return model


def in_ddp_of_a_parent(x, rank):
    model = convert(Network().train(), BITS, weights=DoubleRounding())
    train(DistributedDataParallel(nn.Sequential(model)), x)
    return model


def in_ddp_that_finds_unused(x, rank):
    model = convert(Network().train(), BITS, weights=DoubleRounding())
    train(DistributedDataParallel(model, find_unused_parameters=True), x)
    return model


def in_ddp_with_checkpoints(x, rank):
    model = convert(Network(checkpoints=True).train(), BITS, weights=DoubleRounding())
    train(DistributedDataParallel(model), x)
    return model


def in_compiled_ddp(x, rank):
    model = convert(Network().train(), BITS, weights=DoubleRounding())
    train(torch.compile(DistributedDataParallel(model), backend="eager"), x)
    return model


def in_ddp_of_a_compiled(x, rank):
    model = convert(Network().train(), BITS, weights=DoubleRounding())
    train(DistributedDataParallel(torch.compile(model, backend="eager")), x)
    return model


def in_fsdp(x, rank, dtype=torch.float32, **options):
    model = Network(nn.LayerNorm).to(dtype).train()  # torch's BatchNorm takes no parameters in bfloat16 alone
    convert(model, BITS, weights=DoubleRounding())
    initialise(model, x.to(dtype))
    ignored = set(scales(model))
    for layer in (model.body[3], model.body[5]):
        fully_shard(layer, ignored_params=ignored, **options)
    fully_shard(model, ignored_params=ignored, **options)
    train(model, x.to(dtype))
    return model


def in_fsdp_of_bfloat16(x, rank):
    return in_fsdp(x, rank, torch.bfloat16)


def in_fsdp_of_mixed_precision(x, rank):
    return in_fsdp(x, rank, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


WAYS = {function.__name__: function for function in (
    in_ddp, in_ddp_of_a_parent, in_ddp_that_finds_unused, in_ddp_with_checkpoints, in_compiled_ddp,
    in_ddp_of_a_compiled, in_fsdp, in_fsdp_of_bfloat16, in_fsdp_of_mixed_precision)}


def check_layers_of_one_process():
    """Processes that use different layers, which is what find_unused_parameters is there for, and no_sync."""
    class Either(Network):
        def forward(self, x):
            return self.body[6:](self.body[(3, 5)[dist.get_rank()]](self.body[:3](x)))

    model = Either().train()
    convert(model, BITS, example=X, keep_float=())
    with torch.no_grad():
        for layer in (model.body[3], model.body[5]):
            for bits in BITS:
                with set_bits(model, bits):
                    layer(torch.rand(8, 16))
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped(X[dist.get_rank()::2]).square().mean().backward()
    for layer, owner in ((model.body[3], 0), (model.body[5], 1)):
        for parameter in (layer.bias, layer.weight_quantizer.scales["8"], layer.input_quantizer.scales["8"]):
            local = [torch.empty_like(parameter.grad) for _ in range(2)]
            dist.all_gather(local, parameter.grad)
            assert torch.equal(*local) and parameter.grad.any(), owner
    model.zero_grad()
    model = convert(Network().train(), BITS, example=X)
    wrapped, x = DistributedDataParallel(model), X[dist.get_rank()::2]
    with wrapped.no_sync():
        wrapped(x).square().mean().backward()
    wrapped(x).square().mean().backward()
    accumulated = model.body[3].weight_quantizer.scales["8"].grad.clone()
    model.zero_grad()
    wrapped(x).square().mean().backward()
    torch.testing.assert_close(accumulated, 2 * model.body[3].weight_quantizer.scales["8"].grad)


def values(model):
    return {name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().float()
            for name, value in model.state_dict().items() if value.is_floating_point()}


def run(folder):
    """One process's part: all ways in turn, each one's values into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, way in WAYS.items():
        model = way(X.chunk(dist.get_world_size())[dist.get_rank()], dist.get_rank())
        torch.save(values(model), folder / f"{name}.{dist.get_rank()}.pt")
    if dist.get_world_size() == 2:
        check_layers_of_one_process()
    dist.barrier()


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrappers")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "python", ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(request.param),
               "--standalone", __file__, str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_wrapped_training_is_that_of_one_process(folder, name):
    found = [torch.load(path) for path in sorted(folder.glob(f"{name}.*.pt"))]
    for other in found[1:]:
        assert all(torch.equal(other[key].nan_to_num(), value.nan_to_num()) for key, value in found[0].items())
    bfloat16 = "bfloat16" in name or "mixed" in name
    expected = values(plain(nn.LayerNorm if "fsdp" in name else nn.BatchNorm1d,
                            torch.bfloat16 if name == "in_fsdp_of_bfloat16" else torch.float32))
    for key, value in expected.items():
        torch.testing.assert_close(found[0][key], value, rtol=2e-2 if bfloat16 else 1e-5, equal_nan=True,
                                   atol=2e-2 if bfloat16 else 1e-6)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # ending gloo's threads and the interpreter together aborts the process now and then
