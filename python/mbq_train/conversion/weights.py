"""Which quantizers the weights and their inputs get."""

import functools

from .._names import look_up
from ..quantize.any_precision import AnyPrecisionActivation, AnyPrecisionWeight
from ..quantize.double_rounding import LOWEST_BITS, DoubleRoundingQuantizer
from ..quantize.quantizers import ActivationQuantizer, WeightQuantizer
from ..quantize.round_clamp import FORMS, NORMALISATIONS, RoundClampQuantizer

_QUANTIZERS = {"learned": WeightQuantizer, "double-rounding": DoubleRoundingQuantizer,
               "any-precision": AnyPrecisionWeight, "round-clamp": RoundClampQuantizer}
_ROUNDINGS = ("half_even", "half_up")


def layer_quantizers(name: str, bits, *, correction: bool, rounding: str, scale_chain: bool, shared_sum: bool,
                     normalise: str, form: str) -> dict:
    """Return what makes the quantizers of layers: the arguments weight_quantizer and input_quantizer of `from_float`.

    Raises TypeError, ValueError: as plan_conversion for its arguments of these names.
    """
    quantizer = look_up("convert", _QUANTIZERS, name, argument="quantizer")
    look_up("convert", dict.fromkeys(_ROUNDINGS), rounding, argument="rounding")
    for option, value in (("weight_correction", correction), ("scale_chain", scale_chain),
                          ("shared_sum", shared_sum)):
        if not isinstance(value, bool):
            raise TypeError(f"convert: {option} must be True or False, got {value!r}")
    for option, value, values in (("normalise", normalise, NORMALISATIONS), ("form", form, FORMS)):
        look_up("convert", dict.fromkeys(values), value, argument=option)
        if quantizer is not RoundClampQuantizer and value != values[0]:
            raise ValueError(f"convert: {option} must be left alone unless quantizer is 'round-clamp', got {value!r} "
                             f"with {name!r}")
    if quantizer is RoundClampQuantizer and correction:
        raise ValueError("convert: weight_correction must be off with quantizer 'round-clamp', got it on")
    if quantizer is not DoubleRoundingQuantizer:
        given = {"rounding": rounding != _ROUNDINGS[0], "scale_chain": scale_chain, "shared_sum": shared_sum}
        if any(given.values()):
            raise ValueError("convert: rounding, scale_chain and shared_sum must be left alone unless quantizer is "
                             f"'double-rounding', got {', '.join(name for name in given if given[name])} with {name!r}")
        inputs = AnyPrecisionActivation if quantizer is AnyPrecisionWeight else ActivationQuantizer
        own = {"normalise": normalise, "form": form} if quantizer is RoundClampQuantizer else {"correction": correction}
        return {"weight_quantizer": functools.partial(quantizer, **own), "input_quantizer": inputs}
    if bits[-1] < LOWEST_BITS:
        raise ValueError(f"convert: bits must be at least {LOWEST_BITS} with quantizer 'double-rounding': at 1 bit a "
                         f"code 0 has no sign, got {bits}")
    weights = functools.partial(quantizer, rounding=rounding, scale_chain=scale_chain, shared_sum=shared_sum,
                                correction=correction)
    return {"weight_quantizer": weights, "input_quantizer": ActivationQuantizer}
