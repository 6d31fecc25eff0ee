"""Tables of what was measured on runs, for rich."""

from rich.markup import escape
from rich.table import Table

from mbq_train.conversion.plan import COLUMNS, Conversion
from mbq_train.quantize.bits import FLOAT

from ..runs.ablate import Ablation
from ..runs.evaluation import Evaluation
from ..runs.names import bits_name, network_name, range_name
from ..runs.score import ScoredRun
from ..runs.search import SearchResult
from ..runs.sensitivity import Sensitivities
from .bench_session import bench_module


def conversion_table(conversion: Conversion) -> Table:
    """Return what becomes of every module of a network, and why."""
    table = Table(*COLUMNS, title=conversion.title, caption=conversion.summary)
    table.columns[2].justify = "right"
    for row in conversion.rows():
        table.add_row(*map(escape, row))
    return table


def accuracy_table(result: Evaluation) -> Table:
    """Return the accuracies of a run, beside that of its float network."""
    table = Table("network", "test accuracy (%)", "against float (points)", title="Accuracy",
                  caption="float: after its own epochs alone; the quantized network starts from it")
    table.add_row("float", f"{100 * result.float_accuracy:.2f}", "")
    for bits, value in result.accuracy.items():
        name = network_name(bits) + (", not trained" if bits in result.untrained else "")
        if result.layer_bits and bits != FLOAT:
            name = range_name(result.layer_bits)
        table.add_row(name, f"{100 * value:.2f}", f"{100 * (value - result.float_accuracy):+.2f}")
    return table


def layer_table(record: dict) -> Table:
    """Return every layer's weight bit-width, and the share of its weights that used the last bits in the last epoch."""
    rates = record.get("lsb_rates", {})
    columns = ("layer", "bits", "last bits in use (%)")[:3 if rates else 2]
    table = Table(*columns, title=f"{record['compression']:.2f} x smaller than float32")
    for name, bits in record["layer_bits"].items():
        used = (f"{100 * rates[name]:.1f}" if name in rates else "",) if rates else ()
        table.add_row(escape(name), str(bits), *used)
    return table


def mixed_table(configurations: list[dict]) -> Table:
    """Return the accuracies of configurations with mixed bit-widths, from the result of the recipe hasb."""
    table = Table("drawn at", "mean bits of the layers", "test accuracy (%)", title="Mixed configurations")
    for entry in configurations:
        table.add_row(bits_name(entry["bits"]), f"{entry['mean_bits']:.2f}", f"{100 * entry['accuracy']:.2f}")
    return table


def memory_table(sizes: dict[str, int]) -> Table:
    """Return what a training holds at once, from the bytes of its parts."""
    table = Table("held at once, in each process", "MiB", title="Memory")
    for name, size in sizes.items():
        table.add_row(name.replace("_", " "), f"{size / 2**20:.1f}")
    return table


def score_statistics(result: ScoredRun) -> dict[int, dict[str, float]]:
    """Return mean, deviation and largest of the scores at every bit-width."""
    return {bits: {"mean": scores.mean().item(), "deviation": scores.std().item(), "largest": scores.max().item()}
            for bits, scores in result.scores.items()}


def score_table(result: ScoredRun, name: str) -> Table:
    """Return the statistics of the scores `name` at every bit-width."""
    table = Table("network", "mean", "deviation", "largest", title=f"Scores ({name})")
    for bits, statistics in score_statistics(result).items():
        table.add_row(network_name(bits), *(f"{value:.4g}" for value in statistics.values()))
    return table


def transfer_tables(facts: dict) -> tuple[Table, Table]:
    """Return angles to the first bit-width, layer by layer, and the accuracies of the probes, from transfer_run."""
    names = [network_name(bits) for bits in facts["bits"]]
    angles = Table("layer", *names[1:], title=f"Degrees between the gradients of {names[0]} and others")
    for layer, matrix in facts["angles"].items():
        angles.add_row(layer, *(f"{value:.1f}" for value in matrix[0][1:]))
    probe = Table("probe fitted on", *names, title="Test accuracy (%) of linear probes on the features of")
    for name, row in zip(names, facts["probe"], strict=True):
        probe.add_row(name, *(f"{100 * value:.2f}" for value in row))
    return angles, probe


def ablation_table(result: Ablation) -> Table:
    """Return accuracies with and without weight correction and adapted BatchNorm."""
    first = next(iter(result.cells.values()))
    names = [network_name(bits) + ("*" if bits in first.untrained else "") for bits in first.accuracy]
    table = Table("weight correction", "adapted BatchNorm", *names, title="Test accuracy (%)",
                  caption="*: not trained" if first.untrained else None)
    for (correction, adapt), cell in result.cells.items():
        table.add_row(*("yes" if on else "no" for on in (correction, adapt)),
                      *(f"{100 * value:.2f}" for value in cell.accuracy.values()))
    return table


def sensitivity_table(found: Sensitivities) -> Table:
    """Return traces, and the sensitivity of every layer at every bit-width."""
    table = Table("layer", "weights", "trace", "standard error", *(f"at {bits_name(b)}" for b in found.at_bits),
                  title="Sensitivity", caption="trace of the Hessian's block; at b bits: trace a weight, at least 0, "
                  "times the squared error of the weights")
    for name, trace in found.traces.items():
        values = (f"{values[name]:.2e}" for values in found.at_bits.values())
        table.add_row(name, f"{trace.parameters:,}", f"{trace.value:.3g}", f"{trace.error:.2g}", *values)
    return table


def store_table(facts: dict) -> Table:
    """Return bit-width and layout of every layer, and its relative mean square error at the bit-widths below."""
    widths = sorted({b for layer in facts["layers"] for b in layer["error"] if b < layer["bits"]}, reverse=True)
    table = Table("layer", "shape", "layout", "bits", *(f"at {bits_name(b)}" for b in widths), title="Layers",
                  caption=f"at fewer bits ({facts['rounding']}): mean square error / mean square" if widths else None)
    for layer in facts["layers"]:
        errors = (f"{layer['error'][b]:.1e}" if b in layer["error"] else "-" for b in widths)
        table.add_row(escape(layer["name"]), "x".join(map(str, layer["shape"])), layer["layout"], str(layer["bits"]),
                      *errors)
    return table


def bench_table(rows: list[dict]) -> Table:
    """Return ours and the fastest rival of every measured case, cases that we lose in red."""
    report = bench_module("report")
    table = Table(*report.GLANCE, title="Benchmarks", caption="of copy: share of the bytes a second of a copy in the "
                  "same run")
    for line in report.glance(rows):
        table.add_row(*map(escape, line), style="red" if report.LOSS in line[-1] else None)
    return table


def steps_table(case: str, rows: list[dict]) -> Table:
    """Return every way that a training step was taken, the fastest first."""
    report = bench_module("report")
    kept = [index for index, name in enumerate(report.HEAD) if name not in ("GB/s", "of copy")]
    table = Table(*(report.HEAD[index] for index in kept), title=case)
    for group in report.cases_of(rows).values():
        for row in group:
            cells = report.cells(row)
            table.add_row(*(escape(cells[index].replace("**", "")) for index in kept))
    return table


def comparison_table(found, tolerance: float) -> Table:
    """Return what changed between two runs, the most slowed down first; noise beside it."""
    table = Table("case", "ours", "timer", "relative to", "after / before", "noise", "", title="Two runs",
                  caption="ours over a copy of the same run; slower, faster: beyond "
                          f"{100 * tolerance:g} % and beyond noise")
    for change in found.changes:
        table.add_row(*map(escape, (change.case, change.candidate, change.timer, change.base)), f"{change.ratio:.3f}",
                      f"{change.noise:.3f}", change.verdict, style=_STYLES[change.verdict])
    return table


_STYLES = {"slower": "red", "faster": "green", "": None}


def allocation_table(result: SearchResult) -> Table:
    """Return the bit-width of every layer in the best allocation, and what binds."""
    best = result.found[0].allocation
    binding = f"binding: {', '.join(best.binding)}" if best.binding else "no limit binds"
    table = Table("layer", "bits", title="Bit-widths of layers", caption=f"{binding}; objective: {result.objective}")
    for name, bits in best.bits.items():
        table.add_row(escape(name), str(bits))
    return table


def search_table(result: SearchResult) -> Table:
    """Return every configuration that was tested, beside the bit-widths alone."""
    table = Table("configuration", "bits a weight", "bytes", "bit-operations", "cost", "test accuracy (%)",
                  title="Configurations", caption="not trained at them, where nothing is said")
    rows = [(f"found {place}", one) for place, one in enumerate(result.found, 1)]
    rows += [(bits_name(bits), one) for bits, one in result.uniform.items()]
    rows += [("sweep", one) for one in result.pareto]
    for name, one in rows:
        of = one.allocation
        table.add_row(name, f"{of.mean_bits:.3f}", f"{of.bytes:.0f}", f"{of.bit_operations:.4g}", f"{of.cost:.4g}",
                      f"{100 * one.accuracy:.2f}")
    if result.fine_tuned is not None:
        table.add_row("found 1, fine-tuned", *[""] * 4, f"{100 * result.fine_tuned:.2f}")
    return table
