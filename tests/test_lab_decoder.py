"""The decoder."""

import copy

import pytest
import torch
from foreign import package
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_lab.models import Decoder


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder(vocabulary=50, width=24, depth=2, heads=3)


def test_decoder_sees_no_later_token(decoder):
    tokens = torch.randint(50, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = decoder(tokens), decoder(changed)
    assert before.shape == (2, 9, 50)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    assert all((after[:, t] - before[:, t]).abs().max() > 1e-4 for t in range(5, 9))


def test_decoder_sees_the_order_of_earlier_tokens():
    torch.manual_seed(0)
    decoder = Decoder(vocabulary=50, width=24, depth=1, heads=3)  # one block: only the rotation tells the order
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    last = [decoder(torch.tensor([tokens]))[0, -1] for tokens in ([1, 2, 3, 4], [3, 1, 2, 4])]
    assert (last[0] - last[1]).abs().max() > 1e-2


def test_decoder_trains_compiles_and_keeps_its_dtype(decoder):
    tokens = torch.randint(50, (2, 7))
    out = torch.compile(decoder, fullgraph=True, backend="eager")(tokens)
    torch.testing.assert_close(out, decoder(tokens))
    out.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())
    assert all(abs(layer.weight.std() / 0.02 - 1) < 0.2 for layer in decoder.modules()
               if isinstance(layer, (nn.Linear, nn.Embedding)))
    assert copy.deepcopy(decoder).bfloat16()(tokens).dtype == torch.bfloat16


def test_decoder_is_transformers_llama(decoder):
    transformers = package("transformers")
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                                      intermediate_size=64, rms_norm_eps=1e-5, tie_word_embeddings=False)
    llama = transformers.LlamaForCausalLM(config).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)  # far from linear, so that every operation shows
    llama.load_state_dict({key if key.startswith("lm_head") else f"model.{key}": value
                           for key, value in decoder.state_dict().items()})
    tokens = torch.randint(50, (2, 11))
    torch.testing.assert_close(decoder(tokens), llama(tokens).logits, rtol=1e-4, atol=1e-4)


def test_decoder_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match=r"Decoder: width must be a multiple of 2 \* heads = 6, got 21"):
        Decoder(vocabulary=50, width=21, depth=1, heads=3)
