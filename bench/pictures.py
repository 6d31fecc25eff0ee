"""Pictures of measured rows: how far ours is from a copy, and how long everybody else takes."""

import math
from pathlib import Path

import matplotlib
from report import is_rival

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito: told apart
WON, LOST = COLORS[:2]  # by everybody
MARKERS = "osD^vP"
ROW, COLUMN = 0.24, 1.55  # inches of a case and of a rival
FURTHEST = 100  # where bars end, whatever the rival takes


def draw(machine: dict, rows: list[dict], folder: Path, prefix: str) -> list[Path]:
    """Draw what there is to draw, into files of the folder."""
    rows = [row for row in rows if "ms_p50" in row and row["timer"] != "CUDA graph"]
    written = []
    name = machine.get("gpu", {}).get("name") or machine["cpu"]
    ours = [row for row in rows if row.get("ratio_to_ours") == 1.0 and {"copy_fraction", "numel"} <= row.keys()]
    if ours:
        rates = [row["gbps"] for row in rows if row["candidate"] == "copy"]
        written.append(_saved(_roofline(ours, name, max(rates)), folder / f"{prefix}roofline.png"))
    for number, family in enumerate(_families([row for row in rows if is_rival(row) and "ratio_to_ours" in row])):
        place = folder / f"{prefix}ratios{number + 1}.png"
        written.append(_saved(_ratios(family, name), place))
    return written


def _saved(figure, path: Path) -> Path:
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)
    return path


def _roofline(ours: list[dict], machine: str, rate: float):
    """Share of a copy over the bytes an element that a case must move; below the line a copy is faster."""
    figure, axes = plt.subplots(figsize=(9, 5))
    ops = list(dict.fromkeys(row["op"] for row in ours))
    for place, op in enumerate(ops):
        mine = [row for row in ours if row["op"] == op]
        axes.scatter([row["bytes"] / row["numel"] for row in mine], [row["copy_fraction"] for row in mine],
                     s=[14 + 5 * max(0.0, math.log2(row["bytes"] / 2**16)) for row in mine],
                     color=COLORS[place % len(COLORS)], marker=MARKERS[place // len(COLORS) % len(MARKERS)],
                     edgecolors="white", linewidths=0.5, label=op)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set(xscale="log", ylim=(0, max(1.2, 1.05 * max(row["copy_fraction"] for row in ours))),
             title=f"{machine}: the line is a copy, up to {rate:,.0f} GB/s",
             xlabel="bytes that must move, an element (larger dots: more bytes a call)",
             ylabel="bytes a second / those of a copy")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xticks([tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
                     if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _families(rows: list[dict]) -> list[list[dict]]:
    """Return rows of ops that have a rival in common, directly or by way of others, together."""
    families = []  # of (names of rivals, rows)
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        names = {row["candidate"] for row in mine}
        joined = [family for family in families if family[0] & names]
        families = [family for family in families if not family[0] & names]
        families.append((names.union(*(family[0] for family in joined)),
                         [row for family in joined for row in family[1]] + mine))
    return [family[1] for family in families]


def _ratios(rows: list[dict], machine: str):
    """A row for every case, a column for every rival: its time over ours, a bar to the left where it is faster."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    rivals = list(dict.fromkeys(row["candidate"] for row in rows))
    height = ROW * len(cases) + 1.2
    figure, grid = plt.subplots(1, len(rivals), figsize=(COLUMN * len(rivals), height), sharey=True, squeeze=False)
    ends = [_shown(row["ratio_to_ours"]) for row in rows]
    limits = min(0.7, 0.9 * min(ends)), max(2, max(ends)) * 5  # place for the numbers
    for axes, rival in zip(grid[0], rivals, strict=True):
        for row in (row for row in rows if row["candidate"] == rival):
            _bar(axes, cases.index(row["case"]), row["ratio_to_ours"])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xscale="log", xlim=limits, ylim=(len(cases) - 0.4, -0.6))
        axes.set_title(_wrapped(rival), fontsize=8)
        axes.set_xticks([])
        axes.minorticks_off()
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.tick_params(left=False)
        for place in range(0, len(cases), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
    grid[0][0].set_yticks(range(len(cases)), cases, fontsize=7)
    figure.subplots_adjust(wspace=0.06, top=1 - 0.75 / height)
    lost = sum(row["ratio_to_ours"] < 1 for row in rows)
    figure.suptitle(f"{machine}: time of others / ours. Orange, {lost} of {len(rows)}: they are faster", fontsize=10,
                    y=1 - 0.1 / height)
    return figure


def _shown(ratio: float) -> float:
    return min(max(ratio, 1 / FURTHEST), FURTHEST)


def _bar(axes, place: int, ratio: float) -> None:
    color = LOST if ratio < 1 else WON
    if ratio < 1:  # by a hair too: the bar alone would not be seen
        axes.axhspan(place - 0.5, place + 0.5, color=LOST, alpha=0.25, linewidth=0)
    axes.barh(place, _shown(ratio) - 1, left=1, height=0.7, color=color)
    axes.annotate(f"{ratio:.3g}", (max(1, _shown(ratio)), place), fontsize=7, va="center", xytext=(2, 0),
                  textcoords="offset points", color=color, weight="bold" if ratio < 1 else "normal")


def _wrapped(name: str) -> str:
    """Return a rival's name in lines that fit above its column."""
    lines = [""]
    for word in name.replace("(", " (").split():
        if lines[-1] and len(lines[-1]) + len(word) > 15:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)
