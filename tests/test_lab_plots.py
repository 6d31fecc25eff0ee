"""Pictures: what is on their axes, and that nobody needs colours to read them."""

import pytest
import torch
from small_data import halves

from mbq_lab.runs import plots, sheet

RECORDS = [{"phase": "float", "epoch": epoch, "loss": {32: 2.0}, "accuracy": {32: 1.0}} for epoch in (1, 2, 3)]
PLAIN = RECORDS + [{"phase": "quantized", "epoch": epoch, "loss": {8: 1.0, 1: 1.5}, "accuracy": {8: 1.0, 1: 0.9}}
                   for epoch in (1, 2)] + [{"phase": "result"}]
MSQ = RECORDS + [{"phase": "quantized", "epoch": epoch, "loss": {"8": 1.0}, "accuracy": {"8": 0.9},
                  "layer_bits": {"a": 8 - epoch, "b": 2}} for epoch in (1, 2, 3, 4)]
AT_BITS = {8: {"a": 1e-3, "b": 1e-2}, 4: {"a": 2e-3, "b": 0.0}, 1: {"a": 3e-3, "b": 3e-2}}
FACTS = {"rounding": "half_even", "layers": [{"name": name, "error": {8: 0.0, 4: 0.1, 2: 0.2}} for name in "ab"]}
TRANSFER = {"bits": [32, 8, 1], "probe": [[0.9] * 3] * 3, "angles": {name: [[0, 10, 20]] * 3 for name in "abc"}}


@pytest.fixture
def figure_by(monkeypatch):
    """What gives the figure that a function draws; drawn, so that everything has its place."""
    def draw(function, *arguments):
        figures = []
        for module in (plots, sheet):
            monkeypatch.setattr(module, "write_figure", lambda figure, path: figures.append(figure))
        function("nowhere.png", *arguments)
        figures[0].draw_without_rendering()
        return figures[0]

    return draw


@pytest.mark.parametrize("function, arguments", [
    (plots.plot_accuracy, ({8: 1.0, 1: 0.4}, 0.99, {})),
    (plots.plot_curves, (PLAIN,)),
    (plots.plot_curves, (MSQ,)),
    (plots.plot_layers, (MSQ,)),
    (plots.plot_sensitivities, (AT_BITS,)),
    (plots.plot_store, (FACTS,)),
    (plots.plot_scores, ({8: torch.rand(50), 32: torch.rand(50)}, "el2n")),
    (plots.plot_transfer, (TRANSFER,)),
], ids=["accuracy", "curves", "curves of msq", "layers", "sensitivities", "store", "scores", "transfer"])
def test_pictures_have_titles_units_and_lines_that_differ_in_grey(figure_by, function, arguments):
    figure = figure_by(function, *arguments)
    for axes in (axes for axes in figure.axes if not axes.get_label() == "<colorbar>"):
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        styles = [(line.get_marker(), line.get_linestyle()) for line in lines]
        assert len(styles) == len(set(styles)) and all(marker != "None" for marker, _ in styles)
        assert axes.get_title() and axes.get_ylabel() and (axes.get_xlabel() or function is plots.plot_scores)
        if "%" in axes.get_ylabel():
            assert axes.get_ylim()[1] <= 100 and "accuracy" in axes.get_ylabel()
        for legend in figure.legends:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert not any(axes.get_legend() for axes in figure.axes)


def test_bit_widths_of_layers_are_said_and_not_the_one_that_training_began_with(figure_by):
    names = [text.get_text() for text in figure_by(plots.plot_curves, MSQ).legends[0].get_texts()]
    assert names == ["float network", "2 to 4 bits, by layer"]
    ticks = figure_by(plots.plot_accuracy, {8: 0.9}, 0.95, {"a": 4, "b": 2}).axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["float", "2 to 4 bits, by layer"]


def test_layers_are_one_heat_map_over_the_epochs_of_both_phases(figure_by):
    axes = figure_by(plots.plot_layers, MSQ).axes[0]
    assert axes.images[0].get_array().tolist() == [[7, 6, 5, 4], [2, 2, 2, 2]]
    assert [text.get_text() for text in axes.texts] == list("76542222"[:3]) + ["4"] + ["2"] * 4
    assert {text.get_position()[0] for text in axes.texts} == {4, 5, 6, 7}
    curve = figure_by(plots.plot_curves, MSQ).axes[0].lines[1]
    assert list(curve.get_xdata()) == [4, 5, 6, 7]


def test_a_heat_map_of_many_epochs_has_no_numbers_that_run_into_each_other(figure_by):
    many = [{**MSQ[3], "epoch": epoch} for epoch in range(1, 301)]
    assert not figure_by(plots.plot_layers, many).axes[0].texts


def test_images_say_what_their_numbers_are(figure_by):
    data, rows = halves(), torch.tensor([3, 1])
    figure = figure_by(sheet.contact_sheet, data, {"hardest": rows}, torch.full((60,), 17.0), "scores")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["1\n17 x average", "1\n17 x average"]
