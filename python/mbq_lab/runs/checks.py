"""check_run: what a training would refuse after hours, found before it begins."""

import copy
import warnings

import torch
from torch import nn

from mbq_train import distributed
from mbq_train._errors import first_line
from mbq_train._packages import required
from mbq_train.checkpoint import check_state
from mbq_train.conversion.plan import Conversion
from mbq_train.quantize.bits import same_random_numbers

from ..data import Data
from ..options import Options
from ..recipes import recipe_type
from ..training.recipe import Recipe
from .networks import example_images, plan_of
from .start import start


def check_run(options: Options, data: Data, model: nn.Module) -> Conversion:
    """Return the plan of a training, applied to a copy of `model`. Nothing is trained, written or changed.

    Warns where a batch is larger than the training set. Raises ValueError where the network cannot be converted or
    saved, where it has no output for a class, where the recipe cannot use it (scores, traces), where it cannot start
    from the run of start_from, or where it takes no batch of one image and the last batch of an epoch or of the test is
    one; ImportError for a package that is needed at the end of a run and missing.
    """
    for package in ("matplotlib", "safetensors"):
        required("train", package)
    if options.batch_size > data.train_size:
        warnings.warn(f"train: batch_size should be at most the {data.train_size} training images, got "
                      f"{options.batch_size}: every epoch is one step", RuntimeWarning, stacklevel=3)
    plan = plan_of(options, data, copy.deepcopy(model))
    check_state(plan.apply())
    if options.start_from:
        start(plan.model, options.start_from, model)
    recipe = recipe_type(options.recipe)(plan.model, data, options.bits, options, options.epochs)
    with same_random_numbers(model):
        _check_outputs(data, model)
        _check_single_images(options, data, model, recipe)
        recipe.check()
    return plan


@torch.no_grad()
def _check_outputs(data: Data, model: nn.Module) -> None:
    """Raise ValueError unless `model` has an output for every class."""
    images = example_images(data)
    outputs = copy.deepcopy(model).eval()(images)
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(images) or shape[1] < data.classes:
        raise ValueError(f"train: model must give outputs of shape ({len(images)}, {data.classes}) for {len(images)} "
                         f"images of {data.classes} classes, got {shape}")


def _check_single_images(options: Options, data: Data, model: nn.Module, recipe: Recipe) -> None:
    """Refuse batches of one image: BatchNorm needs several values of a channel, and a squeeze() loses the dimension of
    the samples."""
    world, image = distributed.world_size(), example_images(data, 1)
    counts = {data.train_size, *(recipe.images(epoch) for epoch in range(options.epochs))}
    alone = [images for images in sorted(counts) if 1 in _batch_sizes(images, options.batch_size, world)]
    for training, images in ((True, alone[:1]), (False, [data.test_size] * (data.test_size % options.batch_size == 1))):
        problem = images and _problem(model, image, data.classes, training)
        if problem:
            limit = "train_limit" if training else "test_limit"
            limit += ", prune_rate" if training and options.recipe == "emqnet" else ""
            processes = f" in {world} processes" if world > 1 else ""
            raise ValueError(f"train: {limit} and batch_size must leave no batch of a single image, which this network "
                             f"cannot take, got batches of {options.batch_size} for {images[0]} images{processes} "
                             f"({problem})")


def _batch_sizes(images: int, batch_size: int, world: int) -> set[int]:
    """Return how many images a process has in the batches of an epoch."""
    full, rest = divmod(images, batch_size)
    return ({batch_size // world} if full else set()) | ({rest // world} if rest >= world else set())


@torch.no_grad()
def _problem(model: nn.Module, image: torch.Tensor, classes: int, training: bool) -> str:
    """Return what is wrong with the network's outputs of one image; nothing where it is right."""
    try:
        shape = tuple(copy.deepcopy(model).train(training)(image).shape)
    except Exception as error:  # whatever a network raises
        return first_line(error)
    return "" if shape == (1, classes) else f"outputs have the shape {shape}"
