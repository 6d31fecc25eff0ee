"""The integer program: one bit-width for each layer, the least cost, within limits."""

from collections.abc import Mapping, Sequence
from types import ModuleType

from .._packages import required
from .limits import Limit

_TRIES = 5  # at limits that HiGHS meets within its tolerance alone


def solve(costs: Mapping[str, Mapping[int, float]], limits: Sequence[Limit]) -> dict[str, int]:
    """Return the bit-width of every layer; costs: of those it can have.

    Raises ValueError where limits cannot be met together, with what can be had in their place.
    """
    required("allocate", "scipy")
    import scipy.optimize

    pairs = [(layer, b) for layer, of_layer in costs.items() for b in of_layer]
    largest = max(abs(cost) for of_layer in costs.values() for cost in of_layer.values()) or 1.0
    weights = [costs[layer][b] / largest for layer, b in pairs]
    allowed = {limit.name: limit.most for limit in limits}
    for _ in range(_TRIES):
        bits = _solution(scipy.optimize, pairs, weights, list(costs), limits, allowed)
        if bits is None:
            raise ValueError(_conflict(scipy.optimize, pairs, list(costs), limits))
        over = {limit.name: limit.total(bits) - limit.most for limit in limits if limit.total(bits) > limit.most}
        if not over:
            break
        allowed |= {name: allowed[name] - 2 * excess for name, excess in over.items()}
    return bits


def _solution(optimize: ModuleType, pairs, weights, layers, limits: Sequence[Limit],
              allowed: Mapping[str, float]) -> dict[str, int] | None:
    """Return the solution, None where there is none; allowed: what each limit may come to."""
    rows = [_row(pairs, limit, allowed[limit.name]) for limit in limits]
    constraints = [_one_each(optimize, pairs, layers)]
    if rows:
        constraints.append(optimize.LinearConstraint(rows, ub=[1.0] * len(rows)))
    result = optimize.milp(weights, integrality=1, bounds=optimize.Bounds(0, 1), constraints=constraints,
                           options={"mip_rel_gap": 1e-9})
    return None if result.x is None else _chosen(pairs, result.x)


def _conflict(optimize: ModuleType, pairs, layers, limits: Sequence[Limit]) -> str:
    """Return what to say of limits that can be met one by one but not together: by how much all must be loosened."""
    one_each = _one_each(optimize, [*pairs, None], layers)
    rows = [[*_row(pairs, limit, limit.most), -1.0] for limit in limits]
    result = optimize.milp([0.0] * len(pairs) + [1.0], integrality=[1] * len(pairs) + [0],
                           bounds=optimize.Bounds(0, [1.0] * len(pairs) + [float("inf")]),
                           constraints=[one_each, optimize.LinearConstraint(rows, ub=[0.0] * len(rows))])
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


def _row(pairs, limit: Limit, allowed: float) -> list[float]:
    """Return what every variable takes, as shares of what is allowed in all."""
    scale = allowed if allowed > 0 else 1.0
    return [limit.takes[layer][b] / scale for layer, b in pairs]


def _chosen(pairs, values) -> dict[str, int]:
    found = {}
    for (layer, b), value in zip(pairs, values, strict=False):
        if value > 0.5:
            found[layer] = b
    return found
