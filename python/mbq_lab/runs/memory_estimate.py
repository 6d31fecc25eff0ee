"""How much memory a training takes, before it starts."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mbq_train import distributed
from mbq_train.quantize.bits import bit_states, set_bits
from mbq_train.quantize.scales import initialise
from mbq_train.quantize.weight_bank import WeightBank

from ..options import Options


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what holds them. `activations` is what one forward keeps for its backward, at the whole batch."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    weight_bank: int
    soft_targets: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def estimate_memory(model: nn.Module, images: torch.Tensor, options: Options, *, train_size: int,
                    classes: int) -> MemoryEstimate:
    """Return what a training of the converted `model` holds at once in each process, for batches of options.batch_size.

    The tensors that autograd keeps are counted in two forwards of a copy of the model at the highest bit-width, on a
    half and on all of `images` (an even number), and continued to the batch on a straight line. The data, workspaces
    of the libraries and fragmentation come on top.
    """
    model = copy.deepcopy(model)
    initialise(model, images)
    for state in bit_states(model):
        set_bits(model, state.trained[0])
    half = len(images) // 2
    few, more = (_kept_for_backward(model, images[:number].clone(), options) for number in (half, 2 * half))
    batch = options.batch_size / distributed.world_size()
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    learned = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    moments = 1 if options.optimizer == "sgd" else 2
    return MemoryEstimate(
        parameters=parameters + sum(buffer.nbytes for buffer in model.buffers()), gradients=learned,
        optimizer=moments * learned, activations=round(more + (more - few) * (batch / half - 2)),
        weight_bank=WeightBank(model, options.bits).nbytes if options.weight_bank else 0,
        soft_targets=2 * train_size * classes if options.distill else 0)


def _kept_for_backward(model: nn.Module, images: torch.Tensor, options: Options) -> int:
    """Return how many bytes autograd keeps after a forward, beside parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address comes twice
        return tensor

    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=options.autocast == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.train()(images)
    return sum(size for size, _ in kept.values())
