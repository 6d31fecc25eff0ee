"""How much the loss of a float network bends with the weights of each layer, and what quantizing them costs."""

from .hutchinson import Trace, hessian_traces
from .perturbation import perturbations, quantized_weights, sensitivities

__all__ = ["Trace", "hessian_traces", "perturbations", "quantized_weights", "sensitivities"]
