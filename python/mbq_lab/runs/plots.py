"""Pictures of a run. Epochs are counted through both phases; lines differ by marker and dashes, not by colour alone."""

from mbq_train.files import atomic_path

from .names import bits_name, network_name, range_name

_MARKERS, _DASHES = "osD^vPX*<>", ("-", "--", "-.", ":")
_POINTS = 72  # an inch
_SCORES = {"grand": "norm of the gradient of all layers", "last_layer": "norm of the gradient of the last layer",
           "el2n": "norm of softmax minus target"}


def plot_accuracy(path, accuracy: dict[int, float], float_accuracy: float, layer_bits: dict[str, int]) -> None:
    """Write a PNG with the accuracy of every bit-width, all in [0, 1], beside that of the float network; layer_bits: of
    the layers that have their own."""
    figure = figure_of(6, 4)
    axes = figure.subplots()
    values = {"float": float_accuracy} | {_name(bits, layer_bits): value for bits, value in accuracy.items()}
    axes.axhline(100 * float_accuracy, color="gray", linestyle="--", linewidth=1)
    axes.plot(values.keys(), [100 * value for value in values.values()], "o", markersize=9)
    for name, value in values.items():
        axes.annotate(f"{100 * value:.2f}", (name, 100 * value), xytext=(0, -16), textcoords="offset points",
                      ha="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.margins(x=0.15)
    low, high = 100 * min(values.values()), 100 * max(values.values())
    span = max(high - low, 2)
    axes.set_ylim(max(0, low - span / 2), min(100, high + span / 4))
    axes.set_title("Test accuracy; dashed: the float network")
    axes.set_xlabel("network")
    axes.set_ylabel("test accuracy [%]")
    axes.grid(axis="y", alpha=0.3)
    write_figure(figure, path)


def plot_curves(path, records) -> None:
    """Write a PNG with loss and test accuracy by bit-width over all epochs, from the lines of metrics.jsonl."""
    records = [record for record in records if record["phase"] in ("float", "quantized")]
    figure = figure_of(11, 4.2)
    axes = figure.subplots(1, 2)
    begin = _float_epochs(records)
    layer_bits = records[-1].get("layer_bits", {}) if records else {}
    names = dict.fromkeys(_curve_name(record, bits, layer_bits) for record in records for bits in record["loss"])
    for values, plot, scale in (("loss", axes[0], 1), ("accuracy", axes[1], 100)):
        for number, name in enumerate(names):
            points = [(_epoch(record, begin), scale * value)
                      for record in records for bits, value in record.get(values, {}).items()
                      if _curve_name(record, bits, layer_bits) == name]
            plot.plot(*zip(*points, strict=True), label=name, **_style(number, len(points)))
        plot.axvline(begin + 0.5, color="gray", linestyle=":", linewidth=1)
        _count_epochs(plot)
        plot.grid(alpha=0.3)
    axes[1].set_ylim(top=min(100, axes[1].get_ylim()[1]))
    axes[0].set_title("Training loss")
    axes[1].set_title("Test accuracy")
    axes[0].set_ylabel("cross entropy [nats]")
    axes[1].set_ylabel("test accuracy [%]")
    _legend(figure, axes[0])
    write_figure(figure, path)


def plot_layers(path, records) -> None:
    """Write a PNG with the weight bit-width of every layer after each epoch, from the lines of metrics.jsonl."""
    begin = _float_epochs(records)
    records = [record for record in records if "layer_bits" in record]
    names = list(records[-1]["layer_bits"])
    epochs = [_epoch(record, begin) for record in records]
    figure = figure_of(11, min(1.6 + 0.22 * len(names), 40))
    axes = figure.subplots()
    rows = [[record["layer_bits"][name] for record in records] for name in names]
    image = axes.imshow(rows, cmap="cividis", vmin=1, vmax=8, aspect="auto", interpolation="nearest",
                        extent=(epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5))
    if _POINTS * 8 / len(epochs) >= 7:  # the axes are some 8 inches wide; else numbers would run into each other
        for y, row in enumerate(rows):
            for epoch, bits in zip(epochs, row, strict=True):
                axes.text(epoch, y, str(bits), ha="center", va="center", fontsize=7, color="black" if bits > 4 else
                          "white")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title("Bit-width of every layer's weights after each epoch")
    _count_epochs(axes)
    axes.set_ylabel("layer")
    figure.colorbar(image, label="bits", ticks=range(1, 9))
    write_figure(figure, path)


def plot_scales(path, records) -> None:
    """Write a PNG with the size of the gradients of scales and their rate, by bit-width over the epochs, from the lines
    of metrics.jsonl that have them."""
    begin = _float_epochs(records)
    records = [record for record in records if "scales" in record]
    figure = figure_of(11, 4.2)
    axes = figure.subplots(1, 2)
    for number, bits in enumerate(dict.fromkeys(bits for record in records for bits in record["scales"])):
        for plot, value in zip(axes, ("gradient", "rate"), strict=True):
            points = [(_epoch(record, begin), record["scales"][bits][value]) for record in records]
            plot.plot(*zip(*points, strict=True), label=bits_name(int(bits)), **_style(number, len(points)))
    for plot, title in zip(axes, ("Size of the gradients of scales", "Learning rate of scales"), strict=True):
        plot.set_yscale("log")
        plot.set_title(title)
        _count_epochs(plot)
        plot.grid(alpha=0.3)
    axes[0].set_ylabel("mean of the largest in each quantizer, at most 1")
    axes[1].set_ylabel("mean over the epoch's steps")
    _legend(figure, axes[0])
    write_figure(figure, path)


def plot_sensitivities(path, at_bits) -> None:
    """Write a PNG with the sensitivity of every layer, by bit-width and name; one of 0 has no point."""
    lines = {bits_name(bits): {name: value or float("nan") for name, value in values.items()}
             for bits, values in at_bits.items()}
    _plot_by_layer(path, lines, "Sensitivity of the loss to the quantization of a layer",
                   "mean trace of the Hessian x squared error [nats]")


def plot_store(path, facts: dict) -> None:
    """Write a PNG with the relative error of every layer of a store at every bit-width, from mbq_store.inspect.

    Raises ValueError where every layer has one bit-width alone, and so no error.
    """
    if all(len(layer["error"]) < 2 for layer in facts["layers"]):
        raise ValueError("plot_store: store must be one that can be switched, got one bit-width in every layer")
    widths = sorted({b for layer in facts["layers"] for b in layer["error"]}, reverse=True)[1:]
    lines = {bits_name(bits): {layer["name"]: layer["error"].get(bits, float("nan")) for layer in facts["layers"]}
             for bits in widths}
    _plot_by_layer(path, lines, f"Error of the weights against their highest bit-width ({facts['rounding']})",
                   "mean square error / mean square")


def plot_scores(path, scores: dict, name: str) -> None:
    """Write a PNG with a histogram of the scores of all training images for every bit-width, {bits: (N,)}."""
    figure = figure_of(6, 1.2 + 1.4 * len(scores))
    for axes, (bits, values) in zip(figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0], scores.items(),
                                    strict=True):
        axes.hist(values.numpy(), bins=60, color="tab:blue")
        axes.set_yscale("log")
        axes.set_title(network_name(bits), fontsize=9)
        axes.set_ylabel("images")
        axes.grid(alpha=0.3)
    axes.set_xlabel(f"score {name}: {_SCORES[name]}")
    figure.suptitle("Scores of the training images")
    write_figure(figure, path)


def plot_transfer(path, facts: dict) -> None:
    """Write a PNG of what transfer_run finds: angles to the first bit-width layer by layer, and the probes' table."""
    figure = figure_of(12, 4.6)
    angles, probe = figure.subplots(1, 2)
    names = [network_name(bits) for bits in facts["bits"]]
    for i, name in enumerate(names[1:], start=1):
        angles.plot(list(facts["angles"]), [matrix[0][i] for matrix in facts["angles"].values()],
                    label=f"{names[0]} and {name}", **_style(i - 1, len(facts["angles"])))
    _name_layers(angles, "Angle between the gradients of two bit-widths", "angle [degrees]")
    probe.imshow(facts["probe"], cmap="cividis")
    for i, row in enumerate(facts["probe"]):
        for j, value in enumerate(row):
            probe.text(j, i, f"{100 * value:.1f}", ha="center", va="center", bbox={"facecolor": "white", "pad": 1})
    probe.set_xticks(range(len(names)), names, rotation=30)
    probe.set_yticks(range(len(names)), names)
    probe.set_title("Test accuracy of linear probes [%]")
    probe.set_xlabel("features of")
    probe.set_ylabel("probe fitted on")
    figure.legend(loc="outside left upper", fontsize=8)
    write_figure(figure, path)


def figure_of(width: float, height: float):
    from matplotlib.figure import Figure  # takes a second to import

    return Figure(figsize=(width, height), layout="constrained")


def plot_search(path, result) -> None:
    """Write a PNG with the test accuracy over the mean bit-width: of bit-widths alone, the sweep, and what was found.
    """
    figure = figure_of(7, 4.4)
    axes = figure.subplots()
    groups = {"one bit-width": list(result.uniform.values()), "best at each mean": result.pareto, "found": result.found}
    for number, (name, group) in enumerate(groups.items()):
        points = sorted((one.allocation.mean_bits, 100 * one.accuracy) for one in group)
        if points:
            line = "" if name == "found" else _DASHES[number]
            axes.plot(*zip(*points, strict=True), label=name, marker=_MARKERS[number], linestyle=line, markersize=6)
    if result.fine_tuned is not None:
        axes.plot([result.found[0].allocation.mean_bits], [100 * result.fine_tuned], "*", markersize=11,
                  label="the first found, fine-tuned")
    axes.set_title("Bit-widths of layers, not trained at them")
    axes.set_xlabel("mean bits of a quantized weight")
    axes.set_ylabel("test accuracy [%]")
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    write_figure(figure, path)


def write_figure(figure, path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _plot_by_layer(path, lines: dict[str, dict[str, float]], title: str, label: str) -> None:
    """Write a PNG of {line: {layer: value}} on a logarithmic scale."""
    figure = figure_of(9, 4.6)
    axes = figure.subplots()
    for number, (name, values) in enumerate(lines.items()):
        axes.plot(list(values), list(values.values()), label=name, **_style(number, len(values)))
    axes.set_yscale("log")
    _name_layers(axes, title, label)
    _legend(figure, axes)
    write_figure(figure, path)


def _name_layers(axes, title: str, label: str) -> None:
    """Finish axes that have the names of layers below."""
    axes.set_title(title)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.tick_params(axis="x", rotation=90, labelsize=6)
    axes.grid(alpha=0.3)


def _count_epochs(axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _legend(figure, axes) -> None:
    """Name the lines of one of the axes beside all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _style(number: int, points: int) -> dict:
    """Return how line `number` is drawn: in grey it still differs from the others."""
    return {"marker": _MARKERS[number % len(_MARKERS)], "linestyle": _DASHES[number % len(_DASHES)], "markersize": 4,
            "linewidth": 1.2, "markevery": max(points // 15, 1)}


def _float_epochs(records) -> int:
    return sum(record["phase"] == "float" for record in records)


def _epoch(record: dict, begin: int) -> int:
    """Return the epoch of a record, counted through both phases."""
    return record["epoch"] + (begin if record["phase"] == "quantized" else 0)


def _name(bits: int, layer_bits: dict[str, int]) -> str:
    return range_name(layer_bits) if layer_bits and network_name(bits) == bits_name(bits) else network_name(bits)


def _curve_name(record: dict, bits, layer_bits: dict[str, int]) -> str:
    return "float network" if record["phase"] == "float" else _name(int(bits), layer_bits)
