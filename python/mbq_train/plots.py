"""Pictures of a run."""

from .checkpoint import atomic_path


def plot_accuracy(path, accuracy: dict[int, float], float_accuracy: float) -> None:
    """Write a PNG with the accuracy of every bit-width, all in [0, 1], beside that of the float network."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    values = {"float": float_accuracy} | {f"{bits} bits": value for bits, value in accuracy.items()}
    axes.axhline(100 * float_accuracy, color="gray", linestyle="--", linewidth=1)
    axes.plot(values.keys(), [100 * value for value in values.values()], "o", markersize=9)
    for name, value in values.items():
        axes.annotate(f"{100 * value:.2f}", (name, 100 * value), xytext=(0, 9), textcoords="offset points", ha="center",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.margins(x=0.15)
    axes.set_ylim(max(0, 100 * min(values.values()) - 2), min(100.5, 100 * max(values.values()) + 2))
    axes.set_ylabel("test accuracy [%]")
    axes.grid(axis="y", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
