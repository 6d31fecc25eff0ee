"""The integer program: one bit-width for each layer, the least cost, within limits."""

from collections.abc import Mapping, Sequence
from types import ModuleType

from .._packages import required
from .limits import Limit

_SCALE = 1e4  # of the largest cost, because HiGHS is content within 1e-6 of the least sum
_SPREAD = 10  # how often the least sum may go into the largest cost: together 1e-9 of the least sum
_OPTIONS = {"mip_rel_gap": 1e-9}
_TRIES = 50  # at configurations that are over a limit by less than HiGHS can see

Costs = Mapping[str, Mapping[int, float]]


def solve(costs: Costs, limits: Sequence[Limit]) -> dict[str, int]:
    """Return the bit-width of every layer; costs: of those it can have.

    Costs of layers differ by many orders of magnitude, and HiGHS looks at absolute differences. So what alone costs
    more than a whole configuration that is known is taken out, and the rest is solved again on its own scale.

    Raises ValueError where limits cannot be met together, with what can be had in their place.
    """
    required("allocate", "scipy")
    import scipy.optimize

    above = {layer: {b: cost - min(of_layer.values()) for b, cost in of_layer.items()}
             for layer, of_layer in costs.items()}
    while True:
        bits = _within(scipy.optimize, above, limits)
        total = sum(above[layer][b] for layer, b in bits.items())
        if max(cost for of_layer in above.values() for cost in of_layer.values()) <= _SPREAD * total or total == 0:
            return {layer: bits[layer] for layer in costs}
        above = {layer: {b: cost for b, cost in of_layer.items() if cost <= total}
                 for layer, of_layer in above.items()}


def _within(optimize: ModuleType, costs: Costs, limits: Sequence[Limit]) -> dict[str, int]:
    """Return a cheapest configuration that is within the limits, exactly: HiGHS sees no difference below 1e-6."""
    pairs = [(layer, b) for layer, of_layer in costs.items() for b in of_layer]
    refused = []
    for _ in range(_TRIES):
        bits = _solution(optimize, pairs, costs, limits, refused)
        if bits is None:
            raise ValueError(_conflict(optimize, pairs, list(costs), limits))
        if all(limit.allows(bits) for limit in limits):
            return bits
        refused.append(bits)
    raise RuntimeError(f"allocate: limits must be met within {_TRIES} tries, got configurations over them by a "
                       "millionth; loosen or tighten them a little")


def _solution(optimize: ModuleType, pairs, costs: Costs, limits: Sequence[Limit], refused) -> dict[str, int] | None:
    """Return the solution that is none of `refused`, None where there is none."""
    largest = max(costs[layer][b] for layer, b in pairs) or 1.0
    rows = [_row(pairs, limit) for limit in limits]
    rows += [[float(bits[layer] == b) for layer, b in pairs] for bits in refused]
    most = [1.0] * len(limits) + [len(costs) - 1.0] * len(refused)
    constraints = [_one_each(optimize, pairs, list(costs))]
    if rows:
        constraints.append(optimize.LinearConstraint(rows, ub=most))
    result = optimize.milp([_SCALE * costs[layer][b] / largest for layer, b in pairs], integrality=1,
                           bounds=optimize.Bounds(0, 1), constraints=constraints, options=_OPTIONS)
    if result.x is None and result.status != 2:  # 2: infeasible
        raise RuntimeError(f"allocate: the integer program must be solved, got {result.message}")
    return None if result.x is None else _chosen(pairs, result.x)


def _conflict(optimize: ModuleType, pairs, layers, limits: Sequence[Limit]) -> str:
    """Return what to say of limits that can be met one by one but not together: by how much all must be loosened."""
    one_each = _one_each(optimize, [*pairs, None], layers)
    rows = [[*_row(pairs, limit), -1.0] for limit in limits]
    result = optimize.milp([0.0] * len(pairs) + [1.0], integrality=[1] * len(pairs) + [0],
                           bounds=optimize.Bounds(0, [1.0] * len(pairs) + [float("inf")]),
                           constraints=[one_each, optimize.LinearConstraint(rows, ub=[0.0] * len(rows))],
                           options=_OPTIONS)
    bits = _chosen(pairs, result.x)
    wanted = ", ".join(f"{limit.name} {limit.most:.10g}" for limit in limits)
    found = ", ".join(f"{limit.name} {limit.total(bits):.10g}" for limit in limits)
    return f"allocate: limits must be such that all can hold at once, as {found} do, got {wanted}"


def _one_each(optimize: ModuleType, pairs, layers):
    from scipy.sparse import csr_array

    places = {layer: place for place, layer in enumerate(layers)}
    where = [(places[pair[0]], column) for column, pair in enumerate(pairs) if pair is not None]
    rows, columns = zip(*where, strict=True)
    matrix = csr_array(([1.0] * len(where), (rows, columns)), shape=(len(layers), len(pairs)))
    return optimize.LinearConstraint(matrix, 1, 1)


def _row(pairs, limit: Limit) -> list[float]:
    """Return what every variable takes, as shares of what is allowed in all."""
    scale = limit.most if limit.most > 0 else 1.0
    return [limit.takes[layer][b] / scale for layer, b in pairs]


def _chosen(pairs, values) -> dict[str, int]:
    found = {}
    for (layer, b), value in zip(pairs, values, strict=False):
        if value > 0.5:
            found[layer] = b
    return found
