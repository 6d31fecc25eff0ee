"""Tables of what was measured on runs, for rich."""

from mbq_train.conversion.plan import COLUMNS, Conversion
from mbq_train.quantize.bits import FLOAT
from rich.markup import escape
from rich.table import Table

from ..runs.ablate import Ablation
from ..runs.evaluation import Evaluation
from ..runs.score import ScoredRun
from ..runs.sensitivity import Sensitivities


def network_name(bits: int) -> str:
    """What tables call a bit-width."""
    return "float path" if bits == FLOAT else f"{bits} bits"


def conversion_table(conversion: Conversion) -> Table:
    """What becomes of every module of a network, and why."""
    table = Table(*COLUMNS, title=conversion.title, caption=conversion.summary)
    table.columns[2].justify = "right"
    for row in conversion.rows():
        table.add_row(*map(escape, row))
    return table


def accuracy_table(result: Evaluation) -> Table:
    """The accuracies of a run, beside its float network's."""
    table = Table("network", "test accuracy (%)", "against float (points)", title="Accuracy",
                  caption="float: after its own epochs alone; the quantized network starts from it")
    table.add_row("float", f"{100 * result.float_accuracy:.2f}", "")
    for bits, value in result.accuracy.items():
        name = network_name(bits) + (", not trained" if bits in result.untrained else "")
        if result.layer_bits and bits != FLOAT:
            low, high = min(result.layer_bits.values()), max(result.layer_bits.values())
            name = f"{low} to {high} bits, by layer"
        table.add_row(name, f"{100 * value:.2f}", f"{100 * (value - result.float_accuracy):+.2f}")
    return table


def score_table(result: ScoredRun, name: str) -> Table:
    """Mean, deviation and largest of the scores `name` at every bit-width."""
    table = Table("network", "mean", "deviation", "largest", title=f"Scores ({name})")
    for bits, scores in result.scores.items():
        table.add_row(network_name(bits), *(f"{value:.4g}" for value in (scores.mean(), scores.std(), scores.max())))
    return table


def transfer_tables(facts: dict) -> tuple[Table, Table]:
    """Angles to the first bit-width, layer by layer, and the accuracies of the probes, from transfer_run."""
    names = [network_name(bits) for bits in facts["bits"]]
    angles = Table("layer", *names[1:], title=f"Degrees between the gradients of {names[0]} and others")
    for layer, matrix in facts["angles"].items():
        angles.add_row(layer, *(f"{value:.1f}" for value in matrix[0][1:]))
    probe = Table("probe fitted on", *names, title="Test accuracy (%) of linear probes on the features of")
    for name, row in zip(names, facts["probe"], strict=True):
        probe.add_row(name, *(f"{100 * value:.2f}" for value in row))
    return angles, probe


def ablation_table(result: Ablation) -> Table:
    """Accuracies with and without weight correction and adapted BatchNorm."""
    first = next(iter(result.cells.values()))
    names = [network_name(bits) + ("*" if bits in first.untrained else "") for bits in first.accuracy]
    table = Table("weight correction", "adapted BatchNorm", *names, title="Test accuracy (%)",
                  caption="*: not trained" if first.untrained else None)
    for (correction, adapt), cell in result.cells.items():
        table.add_row(*("yes" if on else "no" for on in (correction, adapt)),
                      *(f"{100 * value:.2f}" for value in cell.accuracy.values()))
    return table


def sensitivity_table(found: Sensitivities) -> Table:
    """Traces, and the sensitivity of every layer at every bit-width."""
    table = Table("layer", "weights", "trace", "standard error", *(f"at {b} bits" for b in found.at_bits),
                  title="Sensitivity", caption="trace of the Hessian's block; at b bits: trace a weight, at least 0, "
                  "times the squared error of the weights")
    table.columns[0].no_wrap = True
    for name, trace in found.traces.items():
        values = (f"{values[name]:.2e}" for values in found.at_bits.values())
        table.add_row(name, f"{trace.parameters:,}", f"{trace.value:.3g}", f"{trace.error:.2g}", *values)
    return table


def store_table(facts: dict) -> Table:
    """Relative mean square error of every layer against its highest bit-width."""
    widths = sorted({b for layer in facts["layers"] for b in layer["error"]}, reverse=True)
    table = Table("layer", "shape", "layout", *(f"{b} bits" for b in widths), title=f"Error ({facts['rounding']})")
    for layer in facts["layers"]:
        errors = (f"{layer['error'][b]:.1e}" if b in layer["error"] else "-" for b in widths)
        table.add_row(layer["name"], "x".join(map(str, layer["shape"])), layer["layout"], *errors)
    return table
