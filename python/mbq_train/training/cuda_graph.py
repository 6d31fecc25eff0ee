"""A training step captured in a CUDA graph."""

import torch

from ..data import Batch

WARM_UP = 3  # steps run as they are before one is captured: libraries choose algorithms and make work space in them


class GraphedStep:
    """`step` as one CUDA graph: the same kernels in the same order, launched at once.

    The first WARM_UP whole batches run as they are on a side stream, then one is captured; the last batch of an epoch,
    where it is smaller, always runs as it is.

    Args:
        step: Batch -> losses, a CUDA tensor; must not wait for the device.
        images: how many a whole batch has in this process.
    """

    def __init__(self, step, images: int):
        self.step, self.images, self.graph, self.warm_ups = step, images, None, 0

    def __call__(self, batch: Batch) -> torch.Tensor:
        if len(batch.images) != self.images:
            return self.step(batch)
        if self.graph is None and self.warm_ups < WARM_UP:
            self.warm_ups += 1
            return self._on_side_stream(batch)
        if self.graph is None:
            self._capture(batch)
        for held, new in zip(self.static[:3], batch[:3], strict=True):
            held.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.losses.clone()

    def _on_side_stream(self, batch):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _capture(self, batch):
        self.static = Batch(*(tensor.to(batch.images.device, copy=True) for tensor in batch[:3]), batch.total)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = self.step(self.static)
