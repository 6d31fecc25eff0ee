"""Tables and pictures of measured rows.   python bench/report.py RESULTS.json... --out DIR

Writes report.md, roofline.png and ratios.png for every results file, and prints the tables.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markdown import Markdown  # noqa: E402

HEAD = ("candidate", "ms p50 [p20, p80]", "GB/s", "of copy", "time / ours", "agreement")
NOT_RIVALS = ("copy", "mbq")


def cases_of(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows by (case, timer), fastest first, those without a number last; a failed row appears once per case."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if "timer" in row:
            groups.setdefault((row["case"], row["timer"]), []).append(row)
    for row in rows:
        if "error" in row:
            key = next((key for key in groups if key[0] == row["case"]), (row["case"], "not timed"))
            groups.setdefault(key, []).append(row)
    return {key: sorted(group, key=lambda row: row.get("ms_p50", float("inf"))) for key, group in groups.items()}


def lost(row: dict) -> bool:
    return not row["candidate"].startswith(NOT_RIVALS) and row.get("ratio_to_ours", 1.0) < 1.0


def cells(row: dict) -> list[str]:
    if "error" in row:
        return [row["candidate"], "not measured", "", "", "", " ".join(row["error"].split())]
    name = f"**{row['candidate']}**" if row["candidate"].startswith("mbq") else row["candidate"]
    fraction, ratio = row.get("copy_fraction"), row.get("ratio_to_ours")
    agreement = "; ".join(part for part in (row["check"], row["differs"]) if part)
    single = " (1 sample)" if row["samples"] == 1 else ""
    return [name, f"{row['ms_p50']:.4g} [{row['ms_p20']:.4g}, {row['ms_p80']:.4g}]{single}",
            f"{row['gbps']:.1f}" if "gbps" in row else "",
            "" if fraction is None else f"{fraction:.2f}",
            "" if ratio is None else f"{ratio:.2f}" + (" **WE LOSE**" if lost(row) else ""), agreement]


def table(head, lines) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def markdown(result: dict) -> str:
    facts, groups = result["machine"], cases_of(result["rows"])
    gpu = f", {facts['gpu']}" if facts.get("gpu") else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    parts = [f"# {facts.get('gpu', {}).get('name', facts['cpu'])}",
             f"{facts['device']}: {facts['cpu']} ({' '.join(facts['cpu_flags'])}), {facts['threads']} threads{gpu}, "
             f"freed memory {facts['freed_memory']}. {versions}. Commit {facts['commit']}. `{facts['command']}`"]
    if result["small"]:
        parts.append("**Tiny shapes: a check that everything runs, not a measurement.**")
    parts += ["## Targets", _targets(result["targets"]), "## Rows we lose", _losses(result["rows"]), "## Every row"]
    for (case, timer), rows in groups.items():
        size = f", {rows[0]['bytes'] / 1e6:.4g} MB by the formula" if "bytes" in rows[0] else ""
        parts += [f"### {case} ({timer}{size})", table(HEAD, [cells(row) for row in rows])]
    return "\n\n".join(parts) + "\n"


def _targets(entries: list[dict]) -> str:
    verdict = {True: "met", False: "**MISSED**", None: "not decided: no such row"}
    return table(("case", "against", "wanted >=", "measured", ""),
                 [[e["case"], " / ".join(e["rivals"]), f"{e['at_least']:.2f}",
                   "" if e["ratio"] is None else f"{e['ratio']:.2f}", verdict[e["met"]]] for e in entries])


def _losses(rows: list[dict]) -> str:
    lines = [[row["case"], row["candidate"], row["timer"], f"{row['ratio_to_ours']:.2f}", row["differs"]]
             for row in rows if lost(row)]
    return table(("case", "faster than ours", "timer", "time / ours", "what differs"), lines) if lines else "None."


def roofline(result: dict, path: Path) -> None:
    """GB/s by the byte formula over the bytes that must move, against the copy of the same run."""
    figure, axes = plt.subplots(figsize=(9, 5.5))
    timed = [row for row in result["rows"] if "gbps" in row and row["timer"] != "CUDA graph"]
    for name in dict.fromkeys(row["candidate"] for row in timed):
        rows = sorted((row for row in timed if row["candidate"] == name), key=lambda row: row["bytes"])
        ours = name.startswith(NOT_RIVALS)
        axes.plot([row["bytes"] for row in rows], [row["gbps"] for row in rows], "s" if name == "copy" else "o",
                  markersize=7 if ours else 4, alpha=0.9 if ours else 0.55, label=name)
    axes.set(xscale="log", yscale="log", xlabel="bytes that must move, by the formula", ylabel="achieved GB/s",
             title=f"{result['machine'].get('gpu', {}).get('name', result['machine']['cpu'])}: the copy is the roof")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


def ratios(result: dict, path: Path) -> None:
    """A line per case: a dot for every rival's time over ours, a bar to the fastest one, red where it beats us."""
    rows = [row for row in result["rows"]
            if "ratio_to_ours" in row and not row["candidate"].startswith(NOT_RIVALS) and row["timer"] != "CUDA graph"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    fastest = [min(row["ratio_to_ours"] for row in rows if row["case"] == case) for case in cases]
    figure, axes = plt.subplots(figsize=(10, 1.5 + 0.26 * len(cases)))
    colors = ["tab:red" if ratio < 1 else "tab:green" for ratio in fastest]
    axes.barh(range(len(cases)), [ratio - 1 for ratio in fastest], left=1, color=colors, alpha=0.6)
    for name in dict.fromkeys(row["candidate"] for row in rows):
        mine = [row for row in rows if row["candidate"] == name]
        axes.plot([row["ratio_to_ours"] for row in mine], [cases.index(row["case"]) for row in mine], "o",
                  markersize=5, label=name)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(cases)), cases, fontsize=7)
    axes.set(xscale="log", xlabel="time / ours (right of 1: ours is faster; bar: the fastest rival)",
             ylim=(len(cases) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for source in arguments.results:
        result = json.loads(source.read_text())
        prefix = f"{source.stem}_" if len(arguments.results) > 1 else ""
        text = markdown(result)
        roofline(result, arguments.out / f"{prefix}roofline.png")
        ratios(result, arguments.out / f"{prefix}ratios.png")
        pictures = f"\n![roofline]({prefix}roofline.png)\n\n![ratios]({prefix}ratios.png)\n"
        (arguments.out / f"{prefix}report.md").write_text(text + pictures)
        console.print(Markdown(text))


if __name__ == "__main__":
    main()
