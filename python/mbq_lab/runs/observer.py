"""Observer: what a run tells while it goes."""

from mbq_train.conversion.plan import Conversion


class Observer:
    """What a run tells while it goes; the methods do nothing until a subclass overrides them.

    Under torchrun every process calls them.
    """

    def plan(self, conversion: Conversion, bank_bytes: int) -> None:
        """Show what will be quantized, before anything is trained, and the bytes of a WeightBank."""

    def record(self, record: dict) -> None:
        """Take a line that goes to metrics.jsonl."""

    def batch(self, phase: str, epoch: int, images: int, total: int) -> None:
        """Count, after every batch of a phase: its epoch from 0, the images done in it, and how many it has."""

    def probe(self, done: int, most: int) -> None:
        """Count the probes of a Hessian's traces: how many are done, and how many there are at most."""

    def close(self) -> None:
        """Finish what is open. A run does not call it: whoever made the observer does."""


class Observers(Observer):
    """Several observers, of which each is told everything in turn."""

    def __init__(self, *observers: Observer):
        self.observers = observers

    def plan(self, conversion, bank_bytes):
        for observer in self.observers:
            observer.plan(conversion, bank_bytes)

    def record(self, record):
        for observer in self.observers:
            observer.record(record)

    def batch(self, phase, epoch, images, total):
        for observer in self.observers:
            observer.batch(phase, epoch, images, total)

    def probe(self, done, most):
        for observer in self.observers:
            observer.probe(done, most)

    def close(self):
        for observer in self.observers:
            observer.close()
