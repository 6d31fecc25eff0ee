"""What the options of a recipe must be together."""

import math


def check_emqnet(options) -> None:
    """Raise ValueError for Options that the recipe emqnet cannot train with."""
    least = 0 if options.sampling == "random" else 3 if options.score == "tdds" else 1
    if options.score_epochs < least:
        raise ValueError(f"options: score_epochs must be at least {least} with sampling {options.sampling!r} and "
                         f"score {options.score!r}, got {options.score_epochs}")
    if options.score_epochs >= options.epochs:
        raise ValueError(f"options: score_epochs must be below epochs, {options.epochs}, got {options.score_epochs}")


def check_hasb(options) -> None:
    """Raise ValueError for Options that the recipe hasb cannot train with."""
    for name in ("cuda_graph", "compile"):
        if getattr(options, name):
            raise ValueError(f"options: {name} must be off with recipe hasb, whose layers change their bit-widths in "
                             "every step, got it on")
    if options.schedule != "each":
        raise ValueError(f"options: schedule must be each with recipe hasb, got {options.schedule!r}")
    if options.batch_norm == "shared":
        raise ValueError("options: batch_norm must be transitional or per_bit with recipe hasb, because one for all "
                         "fits no configuration of the layers, got 'shared'")
    if options.uniform_epochs >= options.epochs:
        raise ValueError(f"options: uniform_epochs must be below epochs, {options.epochs}, got "
                         f"{options.uniform_epochs}")


def check_msq(options) -> None:
    """Raise ValueError for Options that the recipe msq cannot train with."""
    if options.quantizer != "round-clamp" or len(options.bits) != 1:
        raise ValueError("options: bits must be the one bit-width that weights begin with, and quantizer "
                         f"round-clamp, with recipe msq, got {options.bits} with {options.quantizer!r}")
    for name in ("cuda_graph", "weight_bank"):
        if getattr(options, name):
            raise ValueError(f"options: {name} must be off with recipe msq, whose bit-widths change, got it on")
    if options.lowest_bits > options.bits[0]:
        raise ValueError(f"options: lowest_bits must be at most bits, {options.bits[0]}, got {options.lowest_bits}")
    if options.target_compression <= 32 / options.bits[0]:
        raise ValueError(f"options: target_compression must be above {32 / options.bits[0]:.4g}, which "
                         f"{options.bits[0]} bits have before any pruning, got {options.target_compression:g}")
    prunings, most = (options.epochs - 1) // options.prune_interval, 2 if options.hessian else 1
    best = 32 / max(options.lowest_bits, options.bits[0] - most * prunings)
    if options.target_compression > best:
        raise ValueError(f"options: target_compression must be at most {math.floor(100 * best) / 100:g}, for "
                         f"{prunings} prunings of {most} from {options.bits[0]} bits end at {32 / best:g}, got "
                         f"{options.target_compression:g}; more epochs, a smaller prune_interval or lower "
                         "lowest_bits reach further")


RECIPE_CHECKS = {"emqnet": check_emqnet, "hasb": check_hasb, "msq": check_msq}
