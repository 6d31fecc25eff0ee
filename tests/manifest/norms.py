"""Squared norms of every sample's gradient, by kind of layer."""

import torch

import mbq_kernels as mbq

from .entry import CODES, SAMPLES, Op
from .layer_variants import affine_norm_variants, embedding_variants, sample_variants
from .sweeps import over_matrices

A, G = torch.randn(4, 33, 3), torch.randn(4, 33, 5)
IMAGES = torch.randn(4, 3, 1, 33)


def linear(a, g):
    return mbq.sample_grad_norm_linear(a.mT, g.mT)


def conv(a, g):
    """Sum the norms in two dimensions and in one, on positions that are pixels."""
    images = a.unsqueeze(2), g.unsqueeze(2)
    return (mbq.sample_grad_norm_conv2d(*images, kernel_size=(1, 3), padding=(0, 1))
            + mbq.sample_grad_norm_conv1d(a, g, kernel_size=3, padding=1, bias=False))


def of_embedding(codes, scale, bits=4):
    return mbq.sample_grad_norm_embedding(codes.int() % bits, codes.unsqueeze(-1) * scale, padding_idx=0)


def of_layer_norm(codes, scale, bits=4):
    return mbq.sample_grad_norm_layer_norm(codes.float(), codes * scale[0], normalized_shape=codes.shape[-1])


def of_batch_norm(codes, scale, bits=4):
    if codes.shape[1] < 1000:  # every channel is a program, and the interpreter, which gets no more, is slow
        codes = codes[:, :9]
    return mbq.sample_grad_norm_batch_norm(codes.float(), codes * scale[0])


def cube(codes):
    """Return codes as (N, P, 1) floats."""
    return codes.float().flatten(1).unsqueeze(-1)


def pair(samples, size, device):
    return (torch.randn(samples, 5, size, device=device) for _ in range(2))


def maps(samples, channels, device):
    return torch.randn(samples, channels, 9, 9, device=device)


def lookups(samples, device):
    return torch.randint(9, (samples, 5), device=device)


LINEAR = Op(
    name="sample_grad_norm_linear", call=linear, data=SAMPLES, bits=range(0), cuda=False,
    raw={"sample_grad_norm_linear_forward": lambda a, g: dict(
        activations=a.mT, grad_outputs=g.mT, weight_factor=None, bias=True, gram=True)},
    malformed={
        "other samples": ("sample_grad_norm_linear_forward", {"grad_outputs": G[:1]}),
        "other positions": ("sample_grad_norm_linear_forward", {"grad_outputs": G[:, :3]}),
        "a matrix": ("sample_grad_norm_linear_forward", {"activations": A[0], "grad_outputs": G[0]}),
        "one float64": ("sample_grad_norm_linear_forward", {"activations": A.double()}),
        "integers": ("sample_grad_norm_linear_forward", {"grad_outputs": G.int()}),
        "a factor of another size": ("sample_grad_norm_linear_forward",
                                     {"weight_factor": torch.ones(5, 4), "gram": None}),
        "a factor of another dtype": ("sample_grad_norm_linear_forward",
                                      {"weight_factor": torch.ones(5, 3).double(), "gram": None}),
        "a factor with Gram products": ("sample_grad_norm_linear_forward", {"weight_factor": torch.ones(5, 3)})},
    aot=lambda: sample_variants("linear"),
    sanitize=over_matrices(lambda n, size, device: mbq.sample_grad_norm_linear(*pair(n, size, device))))

CONV2D = Op(
    name="sample_grad_norm_conv2d", also=("sample_grad_norm_conv1d",), call=conv, data=SAMPLES, bits=range(0),
    cuda=False,
    raw={"sample_grad_norm_conv2d_forward": lambda a, g: dict(
        activations=a.unsqueeze(2), grad_outputs=g.unsqueeze(2), weight_factor=torch.rand(5, 3, 1, 3, device=a.device),
        kernel_size=[1, 3], stride=[1, 1], padding=[0, 1], dilation=[1, 1], groups=1, bias=False, gram=None)},
    malformed={
        "three dimensions": ("sample_grad_norm_conv2d_forward", {"activations": A.mT, "grad_outputs": G.mT}),
        "groups that do not divide": ("sample_grad_norm_conv2d_forward", {"groups": 2, "weight_factor": None}),
        "no groups": ("sample_grad_norm_conv2d_forward", {"groups": 0, "weight_factor": None}),
        "one stride": ("sample_grad_norm_conv2d_forward", {"stride": [1]}),
        "stride 0": ("sample_grad_norm_conv2d_forward", {"stride": [0, 1]}),
        "a factor of one group": ("sample_grad_norm_conv2d_forward",
                                  {"grad_outputs": IMAGES, "weight_factor": torch.ones(3, 1, 1, 3)})},
    aot=lambda: sample_variants("conv"),
    sanitize=over_matrices(lambda n, size, device: mbq.sample_grad_norm_conv2d(
        maps(n, 3, device), maps(n, size % 64 + 1, device), kernel_size=3, padding=1)))

EMBEDDING = Op(
    name="sample_grad_norm_embedding", call=of_embedding, data=CODES, bits=range(2, 9), cuda=False,
    raw={"sample_grad_norm_embedding_forward": lambda c, s: dict(
        indices=cube(c)[..., 0].long(), grad_outputs=cube(c) * s, padding_idx=3)},
    malformed={"other positions": ("sample_grad_norm_embedding_forward", {"grad_outputs": G[:, :3]})},
    aot=embedding_variants,
    sanitize=over_matrices(lambda n, size, device: mbq.sample_grad_norm_embedding(
        lookups(n, device), next(pair(n, size, device)))))

LAYER_NORM = Op(
    name="sample_grad_norm_layer_norm", call=of_layer_norm, data=CODES, bits=range(2, 9), cuda=False,
    raw={"sample_grad_norm_layer_norm_forward": lambda c, s: dict(
        normalized=cube(c), grad_outputs=cube(c) * 2, weight=True, bias=True)},
    malformed={"other samples": ("sample_grad_norm_layer_norm_forward", {"grad_outputs": G[:1, :, :1]})},
    aot=lambda: affine_norm_variants(positions_last=False),
    sanitize=over_matrices(lambda n, size, device: mbq.sample_grad_norm_layer_norm(
        *pair(n, size, device), normalized_shape=size)))

BATCH_NORM = Op(
    name="sample_grad_norm_batch_norm", call=of_batch_norm, data=CODES, bits=range(2, 9), cuda=False,
    raw={"sample_grad_norm_batch_norm_forward": lambda c, s: dict(
        normalized=cube(c)[:, :9], grad_outputs=cube(c)[:, :9] * 2, weight=True, bias=False)},
    malformed={"other channels": ("sample_grad_norm_batch_norm_forward", {"grad_outputs": G[:, :8, :1]})},
    aot=lambda: affine_norm_variants(positions_last=True),
    sanitize=over_matrices(lambda n, size, device: mbq.sample_grad_norm_batch_norm(
        *(maps(n, size % 64 + 1, device) for _ in range(2)))))

OPS = [LINEAR, CONV2D, EMBEDDING, LAYER_NORM, BATCH_NORM]
