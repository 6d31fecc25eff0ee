"""nn.MultiheadAttention with quantized projections."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .bits import BitState, bit_states
from .layers import QuantLinear

_INPUTS = ("q", "k", "v")


class QuantMultiheadAttention(nn.Module):
    """nn.MultiheadAttention whose projections q_proj, k_proj, v_proj and out_proj are QuantLinear.

    Scores, softmax and their product with the values stay in float. At 32 bits it gives what nn.MultiheadAttention
    gives, to rounding. Made by `from_float`.

    in_proj_weight and in_proj_bias are split into new Parameters, each with a third of the values; all others stay the
    same objects. An optimizer must therefore be made after the conversion. load_state_dict takes the keys of
    nn.MultiheadAttention as well:

        in_proj_weight              q_proj.weight, k_proj.weight, v_proj.weight: its rows in three equal blocks
        in_proj_bias                q_proj.bias, k_proj.bias, v_proj.bias: likewise
        q_, k_, v_proj_weight       q_proj.weight, k_proj.weight, v_proj.weight
        out_proj.*, bias_k, bias_v  the same
    """

    # By these two nn.TransformerEncoder and its layers leave their fused paths, which would read the float weights.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    @classmethod
    def from_float(cls, attention: nn.MultiheadAttention, bit_state: BitState, *, layer_name: str = "layer", **specs):
        """Return a QuantMultiheadAttention with the values of `attention`; `specs` as for QuantLinear.from_float."""
        layer = cls()
        for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn"):
            setattr(layer, name, getattr(attention, name))
        for name, linear in _projections(attention).items():
            own_name = f"{layer_name}.{name}"
            setattr(layer, name, QuantLinear.from_float(linear, bit_state, layer_name=own_name, **specs))
        layer.register_parameter("bias_k", attention.bias_k)
        layer.register_parameter("bias_v", attention.bias_v)
        layer.register_load_state_dict_pre_hook(_split_packed_keys)
        return layer.train(attention.training)

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
                average_attn_weights=True, is_causal=False):
        """Return (output, weights or None), with the arguments of nn.MultiheadAttention; see there.

        Raises ValueError for shapes that do not fit, and for is_causal without attn_mask; TypeError for nested tensors
        and for masks that are neither bool nor floating point.
        """
        _check_inputs(query, key, value, is_causal, attn_mask)
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # is_causal says that it is the causal mask, which the fused kernel makes itself
        else:
            is_causal = False
        batched = query.dim() == 3
        query, key, value = (self._batch_first(x, batched) for x in (query, key, value))
        _check_sizes(query, key, attn_mask, key_padding_mask, self.num_heads, batched)
        q, k, v = self._heads(self.q_proj(query), self.k_proj(key), self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q.dtype)
        out, weights = self._attend(q, k, v, mask, need_weights, is_causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return self._as_given(out, batched), weights

    def _batch_first(self, x, batched: bool):
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _as_given(self, x, batched: bool):
        if not batched:
            return x.squeeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, q, k, v):
        """Return the three as (N, heads, length, head_dim); keys and values with bias_k, bias_v and the zeros at their
        end."""
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(v.shape[0], -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return (x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))

    def _mask(self, attn_mask, key_padding_mask, dtype):
        """Return what is added to the scores, in a shape that broadcasts to (N, heads, L, S and what was added), or
        None."""
        masks = []
        if attn_mask is not None:
            heads = 1 if attn_mask.dim() == 2 else self.num_heads
            masks.append(_additive("attn_mask", attn_mask, dtype).reshape(-1, heads, *attn_mask.shape[-2:]))
        if key_padding_mask is not None:
            padding = _additive("key_padding_mask", key_padding_mask, dtype)
            masks.append(padding.reshape(-1, 1, 1, padding.shape[-1]))
        return F.pad(sum(masks), (0, (self.bias_k is not None) + self.add_zero_attn)) if masks else None

    def _attend(self, q, k, v, mask, need_weights: bool, is_causal: bool):
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal), None
        scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = F.dropout(weights, dropout) if dropout > 0 else weights
        return weights @ v, weights


def close_fast_paths(model: nn.Module) -> None:
    """Keep nn.TransformerEncoder and its layers, where they hold quantizers, from reading weights past these.

    In eval mode they would hand the float weights to one fused operation, or nested tensors to the layers. Padded
    positions, which the nested path sets to 0, then come out computed, as in training.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and bit_states(module):
            module.activation_relu_or_gelu = 0  # read by nothing but the choice of the path
        elif isinstance(module, nn.TransformerEncoder) and bit_states(module):
            module.use_nested_tensor = False


def _projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Return the four projections as nn.Linear."""
    weights = [getattr(attention, f"{x}_proj_weight") for x in _INPUTS]
    if attention.in_proj_weight is not None:
        weights = _split(attention.in_proj_weight)
    biases = [None] * 3 if attention.in_proj_bias is None else _split(attention.in_proj_bias)
    linears = {f"{x}_proj": _linear(weight, bias) for x, weight, bias in zip(_INPUTS, weights, biases, strict=True)}
    return linears | {"out_proj": attention.out_proj}


def _split(parameter: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part.clone(), requires_grad=parameter.requires_grad) for part in parameter.detach().chunk(3)]


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear


def _split_packed_keys(module, state_dict, prefix, *_) -> None:
    """Rename, in the copy that load_state_dict makes, the keys of nn.MultiheadAttention."""
    for kind in ("weight", "bias"):
        packed = state_dict.pop(f"{prefix}in_proj_{kind}", None)
        if packed is not None:
            parts = [part.clone() for part in packed.detach().chunk(3)]  # with assign=True they become the Parameters
            state_dict.update(zip((f"{prefix}{x}_proj.{kind}" for x in _INPUTS), parts, strict=True))
    for x in _INPUTS:
        if f"{prefix}{x}_proj_weight" in state_dict:
            state_dict[f"{prefix}{x}_proj.weight"] = state_dict.pop(f"{prefix}{x}_proj_weight")


def _additive(name: str, mask, dtype):
    """Return `mask` as numbers to add: a bool mask is -inf where True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"QuantMultiheadAttention: {name} must be bool or floating point, got {mask.dtype}")
    return mask.to(dtype)


def _check_inputs(query, key, value, is_causal: bool, attn_mask) -> None:
    shapes = tuple(tuple(x.shape) for x in (query, key, value) if not x.is_nested)
    if len(shapes) < 3:
        raise TypeError("QuantMultiheadAttention: query, key and value must be dense tensors, got a nested one")
    if query.dim() not in (2, 3) or {key.dim(), value.dim()} != {query.dim()} or key.shape[:-1] != value.shape[:-1]:
        raise ValueError("QuantMultiheadAttention: query, key and value must all have 2 or all 3 dimensions, key and "
                         f"value the same but for the last, got {shapes}")
    if is_causal and attn_mask is None:
        raise ValueError("QuantMultiheadAttention: attn_mask must be given with is_causal, which says that it is the "
                         "causal one, got None")


def _check_sizes(query, key, attn_mask, key_padding_mask, heads: int, batched: bool) -> None:
    """Check the sizes of query and key, which are (N, length, features) here."""
    (n, target), source = query.shape[:2], key.shape[1]
    if key.shape[0] != n:
        raise ValueError(f"QuantMultiheadAttention: key must have the batch size of query, {n}, got {key.shape[0]}")
    if attn_mask is not None and attn_mask.shape not in ((target, source), (n * heads, target, source)):
        raise ValueError(f"QuantMultiheadAttention: attn_mask must have shape {(target, source)} or "
                         f"{(n * heads, target, source)}, got {tuple(attn_mask.shape)}")
    wanted = (n, source) if batched else (source,)
    if key_padding_mask is not None and key_padding_mask.shape != wanted:
        raise ValueError(f"QuantMultiheadAttention: key_padding_mask must have shape {wanted}, "
                         f"got {tuple(key_padding_mask.shape)}")
