"""Which quantizer the weights get."""

import functools

from .._names import look_up
from ..quantize.double_rounding import LOWEST_BITS, DoubleRoundingQuantizer
from ..quantize.quantizers import WeightQuantizer
from ..quantize.round_clamp import NORMALISATIONS, RoundClampQuantizer

_QUANTIZERS = {"learned": WeightQuantizer, "double-rounding": DoubleRoundingQuantizer,
               "round-clamp": RoundClampQuantizer}
_ROUNDINGS = ("half_even", "half_up")


def weight_quantizer(name: str, bits, *, rounding: str, scale_chain: bool, shared_sum: bool,
                     normalise: str):
    """What makes the quantizers of weights, with the arguments of WeightQuantizer.

    Raises TypeError, ValueError: as plan_conversion for its arguments of these names.
    """
    quantizer = look_up("convert", _QUANTIZERS, name, argument="quantizer")
    look_up("convert", dict.fromkeys(_ROUNDINGS), rounding, argument="rounding")
    for option, value in (("scale_chain", scale_chain), ("shared_sum", shared_sum)):
        if not isinstance(value, bool):
            raise TypeError(f"convert: {option} must be True or False, got {value!r}")
    look_up("convert", dict.fromkeys(NORMALISATIONS), normalise, argument="normalise")
    given = {"rounding": rounding != _ROUNDINGS[0], "scale_chain": scale_chain, "shared_sum": shared_sum}
    if quantizer is not DoubleRoundingQuantizer and any(given.values()):
        raise ValueError("convert: rounding, scale_chain and shared_sum must be left alone unless quantizer is "
                         f"'double-rounding', got {', '.join(name for name in given if given[name])} with {name!r}")
    if quantizer is not RoundClampQuantizer and normalise != NORMALISATIONS[0]:
        raise ValueError(f"convert: normalise must be left alone unless quantizer is 'round-clamp', got {normalise!r} "
                         f"with {name!r}")
    if quantizer is RoundClampQuantizer:
        return functools.partial(quantizer, normalise=normalise)
    if quantizer is WeightQuantizer:
        return quantizer
    if bits[-1] < LOWEST_BITS:
        raise ValueError(f"convert: bits must be at least {LOWEST_BITS} with quantizer 'double-rounding': at 1 bit a "
                         f"code 0 has no sign, got {bits}")
    return functools.partial(quantizer, rounding=rounding, scale_chain=scale_chain, shared_sum=shared_sum)
