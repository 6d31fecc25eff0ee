"""Which layer gets which bit-width, under limits: allocations from costs."""

from .allocate import Allocation, allocate, other_allocations, pareto_allocations
from .costs import hessian_costs, loss_costs, trace_costs
from .operations import multiply_accumulates

__all__ = ["Allocation", "allocate", "hessian_costs", "loss_costs", "multiply_accumulates", "other_allocations",
           "pareto_allocations", "trace_costs"]
