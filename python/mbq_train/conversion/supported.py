"""Which modules can be quantized, and why the others cannot."""

import sys

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..quantize.attention import QuantMultiheadAttention
from ..quantize.batch_norm import BATCH_NORMS, NORMS
from ..quantize.layers import QuantConv1d, QuantConv2d, QuantLinear, QuantTransposedLinear

_QUANT_TYPES = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d,
                nn.MultiheadAttention: QuantMultiheadAttention}
SUPPORTED = "Linear, Conv1d, Conv2d, MultiheadAttention or transformers' Conv1D"
_COMPUTING = ("forward", "_conv_forward", "merge_masks", "__call__", "__getattr__", "__getattribute__", "weight",
              "bias")
_OF_ATTENTION = {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k",
                 "bias_v"}
_WRAPPERS = {"OptimizedModule": "torch.compile", "DistributedDataParallel": "wrapping it for training on many devices",
             "FullyShardedDataParallel": "wrapping it for training on many devices",
             "DataParallel": "wrapping it for training on many devices", "ScriptModule": "torch.jit"}


def quant_types() -> dict[type, type]:
    """Return the supported types, and what each becomes; transformers' Conv1D among them once somebody has imported it.
    """
    transposed = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return _QUANT_TYPES | ({} if transposed is None else {transposed: QuantTransposedLinear})


def base_type(module: nn.Module) -> type | None:
    """Return the supported type that `module` is, or is a subclass of."""
    return next((base for base in quant_types() if isinstance(module, base)), None)


def overrides_computation(module: nn.Module, base: type) -> bool:
    """Return whether the class of `module`, a subclass of `base`, says how it computes or where its weight comes from.
    """
    return any(getattr(type(module), name, None) is not getattr(base, name, None) for name in _COMPUTING)


def has_running_statistics(module: nn.Module) -> bool:
    """Return whether `module` holds running statistics and is no BatchNorm."""
    return not isinstance(module, BATCH_NORMS) and any(name.startswith("running_") and value is not None
                                                       for name, value in module.named_buffers(recurse=False))


def parts(module: nn.Module) -> list[nn.Module]:
    """Return modules that belong to a layer and are not layers of their own."""
    inner = [module.out_proj] if isinstance(module, nn.MultiheadAttention) else []
    inner += [part for part in module.modules() if part is not module] if isinstance(module, BATCH_NORMS) else []
    inner += module.parametrizations.modules() if parametrize.is_parametrized(module) else []
    return inner + [deeper for part in inner if parametrize.is_parametrized(part)
                    for deeper in part.parametrizations.modules()]


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the Parameters of a layer and its parts, or those that another module holds directly."""
    return [parameter for part in (module, *parts(module)) for parameter in part.parameters(recurse=False)]


def weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the Parameters of a layer that its quantized form quantizes."""
    own = [getattr(module, "weight", None)]
    if isinstance(module, nn.MultiheadAttention):
        own = [module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight,
               module.out_proj.weight]
    return [weight for weight in own if isinstance(weight, nn.Parameter)]


def obstacle(module: nn.Module) -> str | None:
    """Return why a layer of a supported type, or a BatchNorm, cannot be converted as it stands; None when it can."""
    for part in (module, *parts(module)):
        if parametrize.is_parametrized(part):
            return f"{', '.join(part.parametrizations)} is parametrized: remove_parametrizations first"
        hooks = [getattr(hook, "__name__", type(hook).__name__) for kind, registered in vars(part).items()
                 if kind.endswith("_hooks") and registered for hook in registered.values()]
        if hooks:
            return f"it has hooks ({', '.join(hooks)}): remove them, convert, register them again"
        if "forward" in vars(part):
            return "its forward is replaced on the object"
    if isinstance(module, nn.MultiheadAttention):
        children = [name for name, child in module.named_children() if child is not module.out_proj]
        if children or not isinstance(module.out_proj, nn.Linear):
            return f"it holds other modules than its projections: {', '.join(children) or 'out_proj'}"
        if own := {*module._parameters, *module._buffers} - _OF_ATTENTION:
            return f"it holds parameters or buffers of its own: {', '.join(sorted(own))}"
    for parameter in own_parameters(module):
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            return f"a weight is a {type(parameter).__name__} of {parameter.dtype}, not a floating-point Parameter"
    if base_type(module) and not weights(module):
        return "its weight is no Parameter"
    return None


def copied_by_conversion(module: nn.Module) -> list[nn.Parameter]:
    """Return the Parameters that conversion copies: where they are shared with another module, it would untie them."""
    if isinstance(module, nn.MultiheadAttention):
        return [parameter for parameter in (module.in_proj_weight, module.in_proj_bias) if parameter is not None]
    return list(module.parameters()) if isinstance(module, BATCH_NORMS) else []


def why_unsupported(module: nn.Module) -> str:
    """Return why a module that holds Parameters, and is no layer to quantize, stays in float."""
    names = ", ".join(name for name, _ in module.named_parameters(recurse=False))
    if isinstance(module, BATCH_NORMS):
        return "a BatchNorm, which a rule can keep 'float' only"
    if isinstance(module, NORMS):
        return "normalisation"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding: a look-up, not a product"
    if type(module).__module__.startswith("torch.nn."):
        return "type not supported"
    return f"{names}: used by hand, out of the reach of convert"


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError unless `model` is a module to convert: unwrapped, built, with layers below it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f" at {name}" if name else ""
        wrapper = next((_WRAPPERS[base.__name__] for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
        if getattr(module, "_compiled_call_impl", None) is not None:
            wrapper = "torch.compile"
        if wrapper:
            raise ValueError(f"convert: model must be converted before {wrapper}, got {type(module).__name__}{where}")
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise ValueError("convert: model must have run one batch, since lazy modules have no weights before, "
                             f"got {type(module).__name__}{where}")
    if base_type(model) is not None:
        raise ValueError(f"convert: model must hold the layers to quantize below itself, got a bare "
                         f"{type(model).__name__}; put it into nn.Sequential")
