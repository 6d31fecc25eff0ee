"""Tables and pictures of measured rows, and what GPUs are predicted to take at best.

    python bench/report.py RESULTS.json... --out DIR      report.md, roofline.png and ratios.png for every results file
    python bench/report.py RESULTS.json... --into FILE    the table of every op on GPUs, which measured the results,
                                                          between its marks in a Markdown file
"""

import argparse
import json
from pathlib import Path

import matplotlib
import predicted

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markdown import Markdown  # noqa: E402

HEAD = ("candidate", "ms p50 [p20, p80]", "GB/s", "of copy", "time / ours", "agreement")
NOT_RIVALS = ("copy", "mbq")
MARK = "<!-- written by python bench/report.py bench/results/h*.json --into FILE -->"


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
    on_gpu = predicted.cases() if facts["device"] == "cuda" and not result["small"] else {}
    for (case, timer), rows in groups.items():
        size = f", {rows[0]['bytes'] / 1e6:.4g} MB by the formula" if "bytes" in rows[0] else ""
        size += "".join(f", predicted at best on {gpu.name} {1e3 * predicted.predict(on_gpu[case], gpu).seconds:.4g} ms"
                        for gpu in predicted.GPUS if case in on_gpu and gpu.name in facts["gpu"]["name"])
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


def gpu_table(results: list[dict]) -> str:
    """Return the largest case of everything an op launches, and what was measured: predicted and measured times."""
    measured = {}
    for result in results:
        gpu = next((gpu.name for gpu in predicted.GPUS if gpu.name in result["machine"]["gpu"]["name"]), None)
        measured |= {(gpu, row["case"]): row for row in result["rows"]
                     if row.get("ratio_to_ours") == 1.0 and row.get("timer") == "CUDA events"}
    cases, largest = predicted.cases(), {}
    for case in cases.values():
        work = case.op, predicted.paths_of(case) or (case.dtype, case.what)
        largest[work] = max(largest.get(work, case), case, key=lambda case: case.numel)
    chosen = {case.name for case in largest.values()} | {name for _, name in measured}
    head = ("case", "MB", *(f"{gpu.name} {what}" for gpu in predicted.GPUS
                            for what in ("predicted, ms (of copy)", "measured, ms (of copy)")), "limited by")
    lines = []
    for case in (case for name, case in cases.items() if name in chosen):
        line, limits = [case.name, f"{case.bytes / 1e6:.1f}"], []
        for gpu in predicted.GPUS:
            best, row = predicted.predict(case, gpu), measured.get((gpu.name, case.name))
            limits.append(best.limit)
            line += [_time(1e3 * best.seconds, best.share),
                     _time(row["ms_p50"], row["copy_fraction"]) if row else "not measured"]
        lines.append([*line, " / ".join(dict.fromkeys(limits))])
    return table(head, lines)


def _time(milliseconds: float, share: float | None) -> str:
    return f"{milliseconds:.4f}" + ("" if share is None else f" ({share:.2f})")


def replaced(text: str, new: str) -> str:
    """Return a Markdown text with `new` between its marks."""
    before, begin, rest = text.partition(MARK)
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ValueError("report.py: the file must have the two marks of the GPU table")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--out", type=Path, metavar="DIR")
    to.add_argument("--into", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    results = [json.loads(source.read_text()) for source in arguments.results]
    if arguments.into:
        arguments.into.write_text(replaced(arguments.into.read_text(), gpu_table(results)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for source, result in zip(arguments.results, results, strict=True):
        prefix = f"{source.stem}_" if len(results) > 1 else ""
        text = markdown(result)
        roofline(result, arguments.out / f"{prefix}roofline.png")
        ratios(result, arguments.out / f"{prefix}ratios.png")
        pictures = f"\n![roofline]({prefix}roofline.png)\n\n![ratios]({prefix}ratios.png)\n"
        (arguments.out / f"{prefix}report.md").write_text(text + pictures)
        console.print(Markdown(text))


if __name__ == "__main__":
    main()
