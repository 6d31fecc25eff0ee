"""Pictures of a run."""

from .checkpoint import atomic_path


def plot_accuracy(path, accuracy: dict[int, float], float_accuracy: float) -> None:
    """Write a PNG with the accuracy of every bit-width, in per cent, beside that of the float network."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    names = [f"{bits} bits" for bits in accuracy]
    bars = axes.bar(names, [100 * value for value in accuracy.values()], width=0.6, color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.axhline(100 * float_accuracy, color="black", linestyle="--", label=f"float {100 * float_accuracy:.2f}")
    lowest = 100 * min(float_accuracy, *accuracy.values())
    axes.set_ylim(max(0, lowest - 5), 101.5)
    axes.set_ylabel("test accuracy [%]")
    axes.legend(loc="lower left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
