"""A training step captured in a CUDA graph."""

import torch

from ..batches import Batch

WARM_UP = 3  # steps run as they are before one is captured: libraries choose algorithms and make work space in them


class GraphedStep:
    """`step` as one CUDA graph: the same kernels in the same order, launched at once.

    The first WARM_UP whole batches run as they are on a side stream, then one is captured; the last batch of an epoch,
    where it is smaller, always runs as it is. One batch for all bit-widths and one for each are two graphs.

    Args:
        step: one or several Batch -> losses, a CUDA tensor; must not wait for the device.
        images: how many a whole batch has in this process.
    """

    def __init__(self, step, images: int):
        self.step, self.images, self.graphs, self.warm_ups = step, images, {}, 0

    def __call__(self, *batches: Batch) -> torch.Tensor:
        if any(len(batch.images) != self.images for batch in batches):
            return self.step(*batches)
        if len(batches) not in self.graphs:
            if self.warm_ups < WARM_UP:
                self.warm_ups += 1
                return self._on_side_stream(batches)
            self.graphs[len(batches)] = self._capture(batches)
        graph, static, losses = self.graphs[len(batches)]
        for held, new in zip(static, batches, strict=True):
            for tensor, value in zip(held[:3], new[:3], strict=True):
                tensor.copy_(value, non_blocking=True)
        graph.replay()
        return losses.clone()

    def _on_side_stream(self, batches):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step(*batches)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _capture(self, batches):
        """Return (graph, the batches it reads, the losses it writes)."""
        static = [Batch(*(tensor.to(batch.images.device, copy=True) for tensor in batch[:3]), batch.total)
                  for batch in batches]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self.step(*static)
        return graph, static, losses
