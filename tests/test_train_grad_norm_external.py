"""GradNormScorer on networks of transformers and timm, small, with random weights; skipped where these are missing."""

import pytest
import torch
import torch.nn.functional as F
from foreign import package
from grad_norms import check
from networks import one_thread  # noqa: F401
from torch import nn

SAMPLES, LENGTHS = 6, (6, 9)
TEXT = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGES = {"image_size": 32, "patch_size": 8, "num_labels": 3, "hidden_size": 16, "num_hidden_layers": 2,
          "num_attention_heads": 2, "intermediate_size": 32}


def noisy(model):
    """In eval mode, with biases and norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def of_classes(out, y):
    return F.cross_entropy(out.logits, y, reduction="none")


def of_next_tokens(out, tokens):
    return F.cross_entropy(out.logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def bert(library):
    return library.BertForSequenceClassification(library.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16,
        **TEXT))


def distilbert(library):
    return library.DistilBertForSequenceClassification(library.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=16, **TEXT))


def gpt2(library):
    return library.GPT2LMHeadModel(library.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **TEXT))


def llama(library):
    return library.LlamaForCausalLM(library.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        max_position_embeddings=16, **TEXT))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("network", [bert, distilbert, gpt2, llama])
def test_language_models(network, length):
    torch.manual_seed(0)
    model = noisy(network(package("transformers")))
    tokens = torch.randint(3, 50, (SAMPLES, length))
    if network in (gpt2, llama):
        check(model, tokens, tokens, loss=of_next_tokens)
    else:
        check(model, tokens, torch.arange(SAMPLES) % 2, loss=of_classes)


def test_conv1d_of_transformers_is_a_layer():
    package("transformers")
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    tied = Conv1D(6, 6)
    model = noisy(nn.Sequential(nn.Flatten(), Conv1D(6, 64), tied, nn.Tanh(), tied, Conv1D(3, 6)))
    x = torch.randn(SAMPLES, 1, 8, 8)
    assert check(model, x, torch.arange(SAMPLES) % 3, strict=False).layers.keys() == {"1", "2", "5"}


def vit(library):
    return library.ViTForImageClassification(library.ViTConfig(**IMAGES))


def swin(library):
    return library.SwinForImageClassification(library.SwinConfig(
        embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4, image_size=32, patch_size=2, num_labels=3))


def convnext(library):
    return library.ConvNextForImageClassification(library.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, layer_scale_init_value=0.5, num_labels=3))


@pytest.mark.parametrize("network", [vit, swin, convnext])
def test_image_models_of_transformers(network):
    torch.manual_seed(0)
    model = noisy(network(package("transformers")))
    check(model, torch.randn(SAMPLES, 3, 32, 32), torch.arange(SAMPLES) % 3, loss=of_classes)


@pytest.mark.parametrize("name", ["test_vit2", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet"])
def test_image_models_of_timm(name):
    timm = package("timm")
    torch.manual_seed(0)
    model = noisy(timm.create_model(name, num_classes=3, **({"img_size": 32} if "vit" in name else {})))
    check(model, torch.randn(2, 3, 32, 32), torch.arange(2), rtol=1e-4)


def test_swin_of_timm():
    timm = package("timm")
    torch.manual_seed(0)
    model = noisy(timm.models.SwinTransformer(img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 2),
                                              window_size=4, num_classes=3))
    check(model, torch.randn(SAMPLES, 3, 32, 32), torch.arange(SAMPLES) % 3)
