"""A loop that knows nothing of quantizers but `convert` and `set_bits`, on a small network."""

import torch
from networks import small_network, specs

from mbq_train import convert, set_bits

BITS = (8, 4, 2)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def converted(**options):
    return convert(small_network(), BITS, **specs(**options))


def step(model, optimizer, images=IMAGES):
    for bits in BITS:
        set_bits(model, bits)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def trained(**options):
    model = converted(**options)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        step(model, optimizer)
    return model


def outputs(model, images=IMAGES):
    model.eval()
    found = []
    for bits in BITS:
        set_bits(model, bits)
        found.append(model(images).detach())
    return torch.stack(found)
