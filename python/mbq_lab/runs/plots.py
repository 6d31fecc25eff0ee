"""Pictures of a run."""

from mbq_train.checkpoint import atomic_path
from mbq_train.quantize.bits import FLOAT


def plot_accuracy(path, accuracy: dict[int, float], float_accuracy: float) -> None:
    """Write a PNG with the accuracy of every bit-width, all in [0, 1], beside that of the float network."""
    figure = figure_of(5, 3.5)
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
    write_figure(figure, path)


def plot_curves(path, records) -> None:
    """Loss and test accuracy by bit-width over the epochs of both phases, as a PNG, from the lines of metrics.jsonl."""
    records = [record for record in records if record["phase"] in ("float", "quantized")]
    figure = figure_of(11, 4)
    axes = figure.subplots(1, 2)
    begin = sum(record["phase"] == "float" for record in records)
    for values, plot, scale in (("loss", axes[0], 1), ("accuracy", axes[1], 100)):
        curves = {}
        for number, record in enumerate(records, start=1):
            for bits, value in record.get(values, {}).items():
                curves.setdefault(int(bits), []).append((number, scale * value))
        for bits, points in curves.items():
            plot.plot(*zip(*points, strict=True), label="float" if bits == FLOAT else f"{bits} bits", marker=".")
        plot.axvline(begin + 0.5, color="gray", linestyle=":", linewidth=1)
        plot.set_xlabel("epoch")
        plot.grid(alpha=0.3)
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel("test accuracy [%]")
    axes[1].legend()
    write_figure(figure, path)


def plot_layers(path, records) -> None:
    """The weight bit-width of every layer after each epoch, and how many of its weights used their last bits, as a PNG;
    from the lines of metrics.jsonl."""
    records = [record for record in records if "layer_bits" in record]
    figure = figure_of(11, 5)
    bits, rates = figure.subplots(1, 2)
    for number, name in enumerate(records[0]["layer_bits"] if records else ()):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "linewidth": 1.2}
        bits.step([record["epoch"] for record in records], [record["layer_bits"][name] for record in records],
                  where="post", label=name, **style)
        used = [(record["epoch"], 100 * record["lsb_rates"][name]) for record in records if name in record["lsb_rates"]]
        if used:
            rates.plot(*zip(*used, strict=True), marker=".", **style)
    bits.set_ylabel("bits of the weights")
    rates.set_ylabel("weights that use their last bits [%]")
    for plot in (bits, rates):
        plot.set_xlabel("epoch")
        plot.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=6)
    write_figure(figure, path)


def plot_sensitivities(path, at_bits) -> None:
    """Write a PNG with the sensitivity of every layer, by bit-width and name; one of 0 has no point."""
    figure = figure_of(8, 4)
    axes = figure.subplots()
    for bits, values in at_bits.items():
        axes.plot(list(values), [value or float("nan") for value in values.values()], ".-", label=f"{bits} bits")
    axes.set_yscale("log")
    _by_layer(axes, "mean trace of the Hessian x squared error")
    write_figure(figure, path)


def plot_store(path, facts: dict) -> None:
    """Write a PNG with the relative error of every layer of a store at every bit-width, from mbq_store.inspect.

    Raises ValueError where every layer has one bit-width alone, and so no error.
    """
    if all(len(layer["error"]) < 2 for layer in facts["layers"]):
        raise ValueError("plot_store: facts must be of a store that can be switched, got one bit-width in every layer")
    figure = figure_of(8, 4)
    axes = figure.subplots()
    names = [layer["name"] for layer in facts["layers"]]
    for bits in sorted({b for layer in facts["layers"] for b in layer["error"]}, reverse=True)[1:]:
        axes.plot(names, [layer["error"].get(bits, float("nan")) for layer in facts["layers"]], ".-",
                  label=f"{bits} bits")
    axes.set_yscale("log")
    _by_layer(axes, "mean square error / mean square")
    write_figure(figure, path)


def plot_scores(path, scores: dict, name: str) -> None:
    """Write a PNG with a histogram of the scores of all training images for every bit-width, {bits: (N,)}."""
    figure = figure_of(6, 1 + 1.3 * len(scores))
    for axes, (bits, values) in zip(figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0], scores.items(),
                                    strict=True):
        axes.hist(values.numpy(), bins=60, color="tab:blue")
        axes.set_yscale("log")
        axes.set_ylabel("float" if bits == FLOAT else f"{bits} bits")
        axes.grid(alpha=0.3)
    axes.set_xlabel(name)
    write_figure(figure, path)


def plot_transfer(path, facts: dict) -> None:
    """Write a PNG of what transfer_run finds: angles to the first bit-width layer by layer, and the probes' table."""
    figure = figure_of(11, 4)
    angles, probe = figure.subplots(1, 2)
    names = ["float" if bits == FLOAT else f"{bits} bits" for bits in facts["bits"]]
    for i, name in enumerate(names[1:], start=1):
        angles.plot(list(facts["angles"]), [matrix[0][i] for matrix in facts["angles"].values()], ".-",
                    label=f"{names[0]} and {name}")
    _by_layer(angles, "angle between gradients [degrees]")
    probe.imshow(facts["probe"], cmap="viridis")
    for i, row in enumerate(facts["probe"]):
        for j, value in enumerate(row):
            probe.text(j, i, f"{100 * value:.1f}", ha="center", va="center", bbox={"facecolor": "white", "pad": 1})
    probe.set_xticks(range(len(names)), names)
    probe.set_yticks(range(len(names)), names)
    probe.set_xlabel("features of")
    probe.set_ylabel("probe fitted on")
    write_figure(figure, path)


def _by_layer(axes, label: str) -> None:
    """Finish axes that have the names of layers below."""
    axes.set_ylabel(label)
    axes.tick_params(axis="x", rotation=90, labelsize=6)
    axes.grid(alpha=0.3)
    axes.legend()


def figure_of(width: float, height: float):
    from matplotlib.figure import Figure  # takes a second to import

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure, path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
