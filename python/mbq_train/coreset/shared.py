"""Gradients of single samples in parameters that no layer's hook sees: along the autograd graph, node by node."""

from collections import defaultdict

import torch
from torch.autograd.graph import Node

from .gradient_forms import wide, wide_type
from .layouts import Layout, find_layout, is_uninformative, profile


class SharedPaths:
    """The part of a graph between the losses of N samples and parameters that all samples may use alike: position
    embeddings, class tokens, layer scales, tables of biases.

    A node whose gradients have a layout is one of which each sample has its part. Where such a node meets one without
    - what is broadcast over the batch - its part of each sample is sent on alone.

    Args:
        losses: (N,), with a graph.
        parameters: leaves that require a gradient, with their names.
    """

    def __init__(self, losses: torch.Tensor, parameters: dict[torch.Tensor, str]):
        self.samples, self.parameters = len(losses), {id(p): (p, name) for p, name in parameters.items()}
        self.root = losses.grad_fn
        self.nodes = self._leading_to_parameters() if self.root is not None else []
        self._place = {node: i for i, node in enumerate(self.nodes)}
        self._grads = {}

    def signature(self) -> tuple:
        """Return what is equal for graphs of the same nodes, edges and shapes."""
        return tuple((node.name(), *(tuple(meta.shape) for meta in _outputs(node)),
                      *((self._place[child], i) for child, i in node.next_functions if child in self._place))
                     for node in self.nodes)

    def profiles(self) -> "Profiles":
        """Hook all nodes, to keep what the next backward shows of their gradients."""
        return Profiles([node for node in self.nodes if not self._is_parameter(node)], self.samples)

    def find(self, plain: dict, weighted: dict, weights: torch.Tensor) -> list[dict[int, Layout] | None]:
        """Return for every node {output: layout of its gradient}, without those that were 0; None where one has none.
        """
        found = []
        for node in self.nodes:
            layouts = {i: find_layout(value, weighted[node][i], weights) for i, value in plain.get(node, {}).items()
                       if not is_uninformative(value)}
            found.append(None if self._is_parameter(node) or None in layouts.values() else layouts)
        return found

    def check(self, layouts: list, depends_on_inputs) -> None:
        """Raise RuntimeError where samples meet: a node without a layout that was computed from the inputs."""
        for node, found in zip(self.nodes, layouts, strict=True):
            if found is None and depends_on_inputs(node):
                reached = {name for leaf in self._below(node) if self._is_parameter(leaf)
                           for name in [self.parameters[id(leaf.variable)][1]]}
                raise RuntimeError("GradNormScorer: samples must lie along one dimension and not mix, got "
                                   f"{node.name()} between {', '.join(sorted(reached))} and the losses")

    def capture(self, layouts: list):
        """Return hooks that keep the gradients which `squares` needs, in the next backward; unknown: one came that
        `find` has not seen."""
        self.layouts, self.unknown = layouts, False
        shown = {node: found for node, found in zip(self.nodes, layouts, strict=True) if found is not None}
        self._frontier = [node for node in shown if any(self._is_shared(child) for child, _ in node.next_functions)]
        hooks = [node.register_prehook(lambda grads, node=node: self._grads.__setitem__(node, grads))
                 for node in self._frontier]
        return hooks + [node.register_prehook(lambda grads, found=found: self._compare(grads, found))
                        for node, found in shown.items() if len(found) < len(_outputs(node))]

    def _compare(self, grads, found: dict) -> None:
        new = [grad for i, grad in enumerate(grads) if grad is not None and i not in found]
        self.unknown = self.unknown or any(bool(grad.any()) for grad in new)

    @torch.no_grad()
    def squares(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (parameter, (N,) squared norms of the gradients of single samples) for each that the losses reach."""
        whole, alone = defaultdict(int), []
        for node in self._frontier:
            if node not in self._grads:
                continue
            edges = [(i, edge) for i, edge in enumerate(node.next_functions) if self._is_shared(edge[0])]
            parts = {edge: rows_of_edge(node, i, self._grads[node], self.layouts[self._place[node]], _shape(*edge),
                                        self.samples) for i, edge in edges}
            if any(part is None for part in parts.values()):
                alone.append(node)
            else:
                for edge, part in parts.items():
                    whole[edge] = whole[edge] + part
        inner = [node for node, found in zip(self.nodes, self.layouts, strict=True) if found is None]
        leaves = [node for node in inner if self._is_parameter(node)]
        if not alone and len(leaves) == len(inner):
            values = {leaf: wide(whole[leaf, 0]).flatten(1).square().sum(dim=1) for leaf in leaves
                      if (leaf, 0) in whole}
        else:
            each = [self._of_sample(i, whole, alone, inner) for i in range(self.samples)]
            values = {leaf: torch.stack([one[leaf] for one in each]) for leaf in leaves if each and leaf in each[0]}
        self._grads.clear()
        return [(leaf.variable, value) for leaf, value in values.items()]

    def _of_sample(self, sample: int, whole: dict, alone: list, inner: list) -> dict:
        """Return {leaf: squared norm of the gradient of one sample's loss}"""
        grads = {edge: rows[sample] for edge, rows in whole.items()}
        for node in alone:
            layouts = self.layouts[self._place[node]]
            parts = [None if i not in layouts else _part(grad, layouts[i], sample)
                     for i, grad in enumerate(self._grads[node])]
            self._send(node, parts, grads)
        norms = {}
        for node in inner:
            outputs = [grads.pop((node, i), None) for i in range(len(_outputs(node)))]
            if all(grad is None for grad in outputs):
                continue
            if self._is_parameter(node):
                norms[node] = wide(outputs[0]).square().sum()
            else:
                self._send(node, [None if grad is None else grad.to(meta.dtype)
                                  for grad, meta in zip(outputs, _outputs(node), strict=True)], grads)
        return norms

    def _send(self, node, outputs, grads: dict) -> None:
        results = getattr(node, "apply", node)(*outputs)  # a custom Function's node cannot be called
        results = results if isinstance(results, tuple) else (results,)
        for edge, grad in zip(node.next_functions, results, strict=False):
            if grad is not None and self._is_shared(edge[0]):
                grad = (grad.to_dense() if grad.is_sparse else grad).sum_to_size(_shape(*edge))  # else the engine does
                grads[edge] = grads[edge] + grad if edge in grads else grad

    def _is_shared(self, node) -> bool:
        """Return whether all samples use alike what this node made, and a parameter is below."""
        return node in self._place and self.layouts[self._place[node]] is None

    def _is_parameter(self, node) -> bool:
        return id(getattr(node, "variable", None)) in self.parameters

    def _below(self, node) -> list[Node]:
        found, stack = set(), [node]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [child for child, _ in node.next_functions if child in self._place]
        return list(found)

    def _leading_to_parameters(self) -> list[Node]:
        """Return all nodes from which a parameter is reached, each before those it leads to; in the same order for
        equal graphs."""
        reaches, order, stack = {}, [], [(self.root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                reaches[node] = self._is_parameter(node) or any(reaches.get(child) for child, _ in node.next_functions)
                order += [node] if reaches[node] else []
            elif node not in reaches:
                reaches[node] = False
                stack.append((node, True))
                stack += [(child, False) for child, _ in node.next_functions if child is not None]
        return order[::-1]


class Profiles:
    """{node: {output: profile of its gradient}} of one backward."""

    def __init__(self, nodes: list[Node], samples: int):
        self.found, self.samples = {}, samples
        self._hooks = [node.register_prehook(lambda grads, node=node: self._keep(node, grads)) for node in nodes]

    def _keep(self, node, grads) -> None:
        self.found[node] = {i: profile(grad, self.samples) for i, grad in enumerate(grads) if grad is not None}

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def rows_of_edge(node, edge: int, grads, layouts: dict[int, Layout], shape, samples: int) -> torch.Tensor | None:
    """Return (N, *shape) gradients of single samples in what a node broadcasts over the batch; None if it does another
    thing."""
    rule = _RULES.get(node.name())
    if rule is None or len(layouts) != 1 or 0 not in layouts:
        return None
    grad, layout = grads[0], layouts[0]
    if not grad.dim():
        return None
    target = (shape[0], *[1] * (grad.dim() - 2)) if "BatchNorm" in node.name() and edge else tuple(shape)
    target = (1,) * (grad.dim() - len(target)) + target
    if target[layout.dim] != 1 and layout.rows * samples != 1:
        return None
    value = rule(node, edge, grad)
    if value is None:
        return None
    rows = layout.first(value)
    if layout.rows > 1:  # next to the samples now, or where it was
        rows = rows.sum(dim=layout.dim + 1, dtype=wide_type(rows))
    target = target[:layout.dim] + target[layout.dim + 1:]
    alike = [d + 1 for d, size in enumerate(target) if size == 1]
    rows = rows.sum(dim=alike, dtype=wide_type(rows)) if alike else rows
    return rows.reshape(samples, *shape)


def _scaled(grad, factor):
    return grad if factor == 1 else grad * factor


def _product(node, edge: int, grad):
    other = node._saved_other if edge == 0 else node._saved_self
    return None if other is None else grad * other


def _layer_norm(node, edge: int, grad):
    if edge == 1:
        return wide(grad) * ((wide(node._saved_input) - node._saved_result1) * node._saved_result2)
    return grad if edge == 2 else None


def _batch_norm(node, edge: int, grad):
    if edge == 0 or node._saved_training:
        return None
    if edge == 2:
        return grad
    mean, variance = (value.reshape(-1, *[1] * (grad.dim() - 2)) for value in (node._saved_running_mean,
                                                                              node._saved_running_var))
    return wide(grad) * ((wide(node._saved_input) - mean) * (variance + node._saved_eps).rsqrt())


# what reaches an operand before it is summed to the operand's shape
_RULES = {"AddBackward0": lambda node, edge, grad: _scaled(grad, node._saved_alpha if edge else 1),
          "SubBackward0": lambda node, edge, grad: _scaled(grad, -node._saved_alpha if edge else 1),
          "MulBackward0": _product, "ExpandBackward0": lambda node, edge, grad: grad,
          "NativeLayerNormBackward0": _layer_norm, "NativeBatchNormBackward0": _batch_norm}


def _part(grad, layout: Layout, sample: int) -> torch.Tensor:
    """Return the gradient with 0 where it is another sample's."""
    if not grad.dim():
        return grad
    out = torch.zeros_like(grad)
    layout.first(out)[sample] = layout.first(grad)[sample]
    return out


def _outputs(node) -> list:
    """Return shape and type of each thing that the node's operation returned."""
    return [node.variable] if hasattr(node, "variable") else node._input_metadata


def _shape(node, output: int) -> torch.Size:
    return _outputs(node)[output].shape
