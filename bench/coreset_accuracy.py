"""Accuracy against training time of EMQNet's coresets: all images, random, EL2N and GraNd sampling, all for less time.

    python bench/coreset_accuracy.py results.json          # runs what results.json lacks, then prints the table
    python bench/coreset_accuracy.py results.json --table  # prints what there is

Every method starts from the same float network of its seed. Time is that of the processor in this process, with one
thread: what the wall clock shows on an idle core. It holds steps and scoring, not the tests. `full, same time` trains
on all images for the epochs that fit into GraNd's time, with its rate falling to 0 at their end.
"""

import copy
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from mbq_lab import Options, build_model, evaluate, load_data
from mbq_lab.recipes import recipe_type
from mbq_lab.training.loop import Training
from mbq_lab.training.recipe import Recipe
from mbq_train import convert

METHODS = {"random": {"sampling": "random"}, "el2n": {"score": "el2n"}, "grand": {"score": "grand"}}
FULL, SHORT = "full", "full, same time"
OPTIONS = Options.for_recipe("emqnet", bits=(32, 4, 2), epochs=30, float_epochs=5, score_epochs=3, prune_rate=0.8)


def main(results: Path, table: bool = False, seeds: int = 3,
         data: Annotated[str, typer.Option(help="as of mbq train")] = OPTIONS.data,
         model: str = OPTIONS.model, epochs: int = OPTIONS.epochs, score_epochs: int = OPTIONS.score_epochs,
         prune_rate: float = OPTIONS.prune_rate, train_limit: int = 0) -> None:
    """Run what `results` lacks, one method of one seed at a time, and print the table."""
    torch.set_num_threads(1)
    options = replace(OPTIONS, data=data, model=model, epochs=epochs, score_epochs=score_epochs, prune_rate=prune_rate,
                      train_limit=train_limit)
    rows = json.loads(results.read_text()) if results.exists() else []
    for seed in range(0 if table else seeds):
        done = {r["method"] for r in rows if r["seed"] == seed}
        missing = [name for name in (FULL, *METHODS, SHORT) if name not in done]
        if missing:
            images = load_data(options.data, train_limit=options.train_limit or None)
            start = float_network(images, replace(options, seed=seed))
        for name in missing:
            rows.append(measured(name, images, start, replace(options, seed=seed), rows))
            results.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]), file=sys.stderr)
    print("\n".join(lines_of(rows)))


def float_network(images, options: Options):
    torch.manual_seed(options.seed)
    model = build_model(options.model, classes=images.classes, in_channels=images.in_channels,
                        image_size=images.image_size)
    Training(model, images, (32,), options, epochs=options.float_epochs).run()
    return model


def measured(name: str, images, start, options: Options, rows) -> dict:
    """One row: a method trained from `start`."""
    epochs = options.epochs
    if name == SHORT:
        full, grand = (next(r for r in rows if r["seed"] == options.seed and r["method"] == m) for m in (FULL, "grand"))
        epochs = max(1, round(epochs * grand["seconds"] / full["seconds"]))
    recipe = recipe_type("emqnet") if name in METHODS else Recipe
    options = replace(options, **METHODS.get(name, {}), epochs=max(epochs, options.score_epochs + 1))
    model = convert(copy.deepcopy(start), [b for b in options.bits if b != 32],
                    example=next(images.test_batches(2)).images, weights=options.weights,
                    batch_norm=options.batch_norm)
    torch.manual_seed(options.seed)
    training, records = Training(model, images, options.bits, options, epochs=epochs, recipe=recipe), []
    begin = time.process_time()
    training.run(on_epoch=records.append)
    seconds = time.process_time() - begin
    accuracy = {b: evaluate(model, images, b) for b in options.bits}
    chance = 1 / images.classes
    if not all(value > chance for value in accuracy.values()):
        raise RuntimeError(f"coreset_accuracy: {name} learned nothing, got {accuracy}")
    return {"method": name, "seed": options.seed, "epochs": epochs, "steps": training.steps, "seconds": seconds,
            "scoring_wall_share": sum(r.get("scoring_seconds", 0) for r in records) / (sum(
                r["seconds"] + r.get("scoring_seconds", 0) for r in records)), "accuracy": accuracy,
            "mean": statistics.mean(accuracy.values()), "torch": torch.__version__,
            "options": {key: getattr(options, key) for key in ("data", "model", "score_epochs", "prune_rate",
                                                              "batch_size", "learning_rate", "bits")}}


def lines_of(rows) -> list[str]:
    """A table in Markdown, and what it says of the claims."""
    bits = list(rows[0]["accuracy"])
    names = " | ".join(f"{b} bits" for b in bits)
    lines = [f"| trained on | epochs | seconds | scoring (%) | {names} | mean | seeds |",
             "|---" * (6 + len(bits)) + "|"]
    by_method = {name: sorted((r for r in rows if r["method"] == name), key=lambda r: r["seed"])
                 for name in (FULL, *METHODS, SHORT)}
    for name, own in by_method.items():
        if own:
            cells = [spread([100 * r["accuracy"][b] for r in own]) for b in bits]
            lines.append(f"| {name} | {'/'.join(map(str, sorted({r['epochs'] for r in own})))} | "
                         f"{statistics.mean(r['seconds'] for r in own):.1f} | "
                         f"{100 * statistics.mean(r['scoring_wall_share'] for r in own):.0f} | {' | '.join(cells)} | "
                         f"{spread([100 * r['mean'] for r in own])} | {len(own)} |")
    for rival in ("random", SHORT, "el2n"):
        pairs = [100 * (a["mean"] - b["mean"]) for a in by_method["grand"] for b in by_method[rival]
                 if a["seed"] == b["seed"]]
        if len(pairs) > 1:
            lines.append(f"GraNd - {rival}: {spread(pairs)} points, seed by seed")
    if by_method[FULL] and by_method["grand"]:
        full, grand = (statistics.mean(r["seconds"] for r in by_method[m]) for m in (FULL, "grand"))
        steps = by_method[FULL][0]["steps"] / by_method["grand"][0]["steps"]
        lines.append(f"Faster than all images at equal epochs: {full / grand:.2f} x; by steps alone {steps:.2f} x")
    return lines


def spread(values) -> str:
    """mean +- deviation over seeds"""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    typer.run(main)
