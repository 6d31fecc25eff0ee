"""GradNormScorer against autograd of one sample at a time in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from grad_norms import check, images, oracle, trained_norms
from networks import conv1d_network, depthwise_network, llama_network, one_thread, small_network  # noqa: F401
from torch import nn

from mbq_lab import build_model
from mbq_train import GradNormScorer


@pytest.mark.parametrize("network", [small_network, depthwise_network])
@pytest.mark.parametrize("samples", [1, 7])
def test_convolutional_networks(network, samples):
    check(trained_norms(network()), *images(samples))


def test_conv1d_with_every_kind_of_padding():
    x = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(3))
    check(trained_norms(conv1d_network()), x, torch.arange(5) % 3)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_conv2d_strides_dilation_and_padding(padding, mode):
    torch.manual_seed(0)
    stride = 1 if padding == "same" else 2
    model = nn.Sequential(nn.Conv2d(1, 4, (2, 3), stride=stride, padding=padding, dilation=(1, 2), padding_mode=mode),
                          nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    check(model, *images())


def test_vit_t_with_its_token_and_positions_or_without():
    torch.manual_seed(0)
    model = build_model("vit_t", classes=10, in_channels=3, image_size=(8, 8)).eval()
    x, y = images(2, 3)
    assert {"cls_token", "pos_embed"} <= check(model, x, y).layers.keys()
    with pytest.warns(RuntimeWarning, match="0.0.% of the parameters do not count.*cls_token, pos_embed"):
        check(model, x, y, strict=False, left_out=("cls_token", "pos_embed"))


def test_tied_weights_are_added_before_they_are_squared():
    model = llama_network()
    tokens = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(5))

    def loss(out, targets):
        return F.cross_entropy(out.transpose(1, 2), targets, reduction="none")

    norms = check(model, tokens, tokens.roll(1, dims=1), loss=loss)
    assert "0" in norms.layers and "4" not in norms.layers  # under the first name


class Reused(nn.Module):
    """Everything twice: a convolution, a normalisation and a Linear layer with its bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.GroupNorm(2, 2)
        self.twin = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.twin.bias = self.conv.bias
        self.stem, self.middle, self.head = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(18, 18), nn.Linear(18, 3)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x)))
        x = self.norm(self.twin(self.conv(F.relu(x)))).flatten(1)
        return self.head(self.middle(self.middle(x).tanh()))


def test_layers_called_twice_and_a_bias_of_two_layers():
    check(Reused(), *images())


def test_bfloat16_under_autocast_is_within_its_rounding():
    model = trained_norms(small_network())
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        norms = GradNormScorer(model)(x, y)
    assert norms.outputs.dtype == torch.bfloat16 and norms.total.dtype == torch.float32
    torch.testing.assert_close(norms.total, oracle(model, x, y), rtol=5e-2, atol=1e-3)


def test_frozen_parameters_and_unused_layers_do_not_count():
    model = trained_norms(small_network())
    for parameter in model[3].parameters():
        parameter.requires_grad_(False)
    model[7].bias.requires_grad_(False)
    x, y = images()
    norms = check_frozen(model, x, y)
    assert "3" not in norms.layers and {"0", "7", "9"} <= norms.layers.keys()
    assert not model[3].weight.requires_grad and model[7].weight.requires_grad


class Halfway(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x.flatten(1))
        return self.head(x.relu())


def test_a_part_without_gradients_does_not_count():
    torch.manual_seed(0)
    assert list(check(Halfway(), *images()).layers) == ["head"]


def check_frozen(model, x, y):
    norms = GradNormScorer(model)(x, y)
    torch.testing.assert_close(norms.total, oracle(model, x, y), rtol=1e-5, atol=1e-7)
    return norms


def test_gradients_that_are_not_finite_say_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, y = images()
    x[2, 0, 0, 0], x[4, 0, 0, 0] = math.nan, math.inf
    assert GradNormScorer(model)(x, y).total.isfinite().tolist() == [True, True, False, True, False, True, True]


def test_batch_norm_in_training_mode_is_an_error():
    with pytest.raises(ValueError, match="GradNormScorer: BatchNorm must be in eval mode.*got 1$"):
        GradNormScorer(small_network())(*images())


@pytest.mark.parametrize("layers", [None, ["3"]])
def test_batch_norm_in_training_mode_is_an_error_where_it_does_not_count_too(layers):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="GradNormScorer: BatchNorm must be in eval mode.*got 2$"):
        GradNormScorer(model, layers=layers)(*images())
    assert model[2].num_batches_tracked == 0


def test_hooks_of_others_belong_to_the_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda layer, args, out: 2 * out.relu())
    check_frozen(model, *images())


def test_no_samples():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    norms = GradNormScorer(model)(*(value[:0] for value in images()))
    assert norms.total.shape == norms.layers["1"].shape == norms.losses.shape == (0,)


def test_losses_that_depend_on_other_parameters_alone_are_an_error():
    factor = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="losses must depend on a layer with parameters"):
        GradNormScorer(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))(
            *images(), loss=lambda outputs, targets: outputs.detach() * factor)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.linear(x.flatten(1), self.inner.weight))


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


class Same(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Changed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = x.flatten(1).clone()
        out = self.first(x)
        x.zero_()
        return self.head(out)


@pytest.mark.parametrize("network", [
    ByHand, lambda: nn.Sequential(nn.Flatten(), Same(64, 3)), lambda: nn.Sequential(nn.Flatten(), Scaled(64, 3)),
    lambda: nn.Sequential(nn.Flatten(2), nn.Flatten(0, 1), nn.Linear(64, 3)),
    lambda: nn.Sequential(nn.Flatten(1, 2), nn.Flatten(0, 1), nn.Linear(8, 3), nn.Unflatten(0, (-1, 8)), nn.Flatten(1),
                          nn.Linear(24, 3)),
    lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.PReLU(2), nn.Flatten(), nn.Linear(200, 3)),
], ids=["by hand", "same subclass", "other subclass", "one row a sample", "eight rows a sample", "other types"])
def test_parameters_that_no_hook_sees_count(network):
    torch.manual_seed(0)
    check(network(), *images())


def test_what_would_give_wrong_norms_is_an_error():
    x, y = images()
    with pytest.raises(RuntimeError, match="inputs must not be changed in place, got that of first"):
        GradNormScorer(Changed())(x, y)
    with pytest.raises(ValueError, match="loss must give one value a sample, got a single one"):
        GradNormScorer(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))(x, y, loss=F.cross_entropy)
    with pytest.raises(ValueError, match="weights must be one of quantized, latent, got 'float'"):
        GradNormScorer(nn.Sequential(nn.Linear(2, 2)), weights="float")
    with pytest.raises(ValueError, match="parameters must be those of Linear.*got 0.weight, 0.bias"):
        GradNormScorer(nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), strict=False)
