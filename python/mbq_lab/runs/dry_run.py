"""dry_run: what a run would do."""

from dataclasses import dataclass
from pathlib import Path

from mbq_train.conversion.plan import Conversion

from ..options import Options
from .checks import check_run
from .devices import check_device
from .folder import check_free
from .memory_estimate import MemoryEstimate, estimate_memory
from .networks import data_and_float_network, example_images


@dataclass(frozen=True)
class DryRun:
    """What a run would convert, and hold in memory."""

    conversion: Conversion
    memory: MemoryEstimate
    steps: int


def dry_run(options: Options, *, device: str = "cpu", folder=None, overwrite: bool = False) -> DryRun:
    """Return what `train_run` would do, in `folder` if one is given, without training or writing. Raises as it does."""
    if folder is not None:
        check_free(Path(folder), overwrite)
    data, model = data_and_float_network(options, check_device(device))
    plan = check_run(options, data, model)
    memory = estimate_memory(plan.model, example_images(data, 4), options, train_size=data.train_size,
                             classes=data.classes)
    return DryRun(plan, memory, data.steps(options.batch_size))
