"""Rivals of round_clamp_lsb that keep a trainable plane for every bit of a weight: baselines of bench_bit_planes.py.

After BSQ (Yang et al., 2021, arXiv 2102.10462): positive and negative planes in [0, 2], rounded straight through,
W = s (sum_b 2^b (round(p_b) - round(n_b))) / (2^n - 1), with its group-lasso penalty on every plane. After CSQ (Xiao et
al., 2022, arXiv 2212.02770): planes behind a sigmoid of growing temperature, and a gate for every bit. Both in small:
what a step spends on the quantizer, and what is stored for it; their schedules are left out.
"""

import torch


def rounded(x):
    """round(x), straight through"""
    return x + (x.round() - x).detach()


class PlanesBSQ:
    """Two planes a bit for one weight."""

    def __init__(self, weight, bits):
        self.bits, self.scale = bits, weight.detach().abs().amax()
        code = (weight.detach().abs() / self.scale * (2**bits - 1)).round().long()
        # the shift is arithmetic: right with a negative code too
        planes = torch.stack([(code >> b & 1).float() for b in range(bits)])
        positive = (weight.detach() >= 0).float()
        self.positive = (planes * positive).requires_grad_()
        self.negative = (planes * (1 - positive)).requires_grad_()

    @property
    def parameters(self):
        return [self.positive, self.negative]

    def __call__(self):
        """(weight, penalty)"""
        powers = 2.0 ** torch.arange(self.bits, device=self.scale.device)
        planes = rounded(self.positive) - rounded(self.negative)
        weight = self.scale * torch.tensordot(powers, planes, 1) / (2**self.bits - 1)
        norms = (self.positive.square() + self.negative.square()).flatten(1).sum(1).sqrt()
        return weight, norms.sum()

    @torch.no_grad()
    def clamp(self):
        """After every step, as BSQ does."""
        for plane in self.parameters:
            plane.clamp_(0, 2)


class PlanesCSQ:
    """A continuous plane a bit, in two's complement, and a gate for every bit."""

    def __init__(self, weight, bits, temperature=10.0):
        self.bits, self.scale, self.temperature = bits, weight.detach().abs().amax(), temperature
        code = (weight.detach() / self.scale * (2 ** (bits - 1) - 1)).round().long()
        # the shift is arithmetic: right with a negative code too
        planes = torch.stack([(code >> b & 1).float() for b in range(bits)])
        self.planes = (planes - 0.5).requires_grad_()
        self.gates = torch.full((bits,), 0.5, device=weight.device).requires_grad_()

    @property
    def parameters(self):
        return [self.planes, self.gates]

    def __call__(self):
        """(weight, penalty)"""
        powers = 2.0 ** torch.arange(self.bits, device=self.scale.device)
        powers = torch.cat([powers[:-1], -powers[-1:]])
        gates = torch.sigmoid(self.temperature * self.gates)
        planes = torch.sigmoid(self.temperature * self.planes)
        weight = self.scale * torch.tensordot(powers * gates, planes, 1) / (2 ** (self.bits - 1) - 1)
        return weight, gates.sum()

    def clamp(self):
        pass
