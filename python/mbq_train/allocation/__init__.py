"""Which layer gets which bit-width, under limits: allocations from costs."""

from .allocate import Allocation, allocate, other_allocations, pareto_allocations
from .costs import hessian_costs, loss_costs, trace_costs
from .operations import multiply_accumulates
from .tied import tied_layers

__all__ = ["Allocation", "allocate", "hessian_costs", "loss_costs", "multiply_accumulates", "other_allocations",
           "pareto_allocations", "tied_layers", "trace_costs"]
