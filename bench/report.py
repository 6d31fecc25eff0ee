"""Tables and pictures of measured rows, and what GPUs are predicted to take at best.

    python bench/report.py RESULTS.json... --out DIR      report.md and pictures for every results file
    python bench/report.py RESULTS.json... --into FILE    the table of the device that measured the results, between its
                                                          marks in a Markdown file: of CPU_CASES, or of every op on GPUs
"""

import argparse
import json
from pathlib import Path

import predicted
from rows import OURS
from targets import FLOAT_STEPS, UNQUANTIZED, first_match

HEAD = ("candidate", "ms p50 [p20, p80]", "GB/s", "of copy", "time / ours", "agreement")
GLANCE = ("case", "ours, ms", "of copy", "fastest rival", "its time / ours")
NOT_RIVALS = ("copy", *OURS, FLOAT_STEPS, UNQUANTIZED)
LOSS = "WE LOSE"
MARKS = {"cuda": "<!-- written by python bench/report.py bench/results/h*.json --into FILE -->",
         "cpu": "<!-- written by python bench/report.py bench/results/epyc-2-cores.json --into FILE -->"}
CPU_CASES = ("fake_quantize-*-64Mi-*", "fake_quantize-*-4096x4096-*", "fake_quantize-*-512x512x3x3-*",
             "fake_quantize-axis1-*", "fake_quantize-*-groups*", "fake_quantize-*-4x4-*", "fake_quantize_*",
             "double_round-*", "*lsb*-4096x4096-*", "round_clamp*-4096x4096-*", "*lsb_foreach-*", "*-64Mi",
             "*el2n-65536x1000-*", "correct_weight_bias-*", "sample_grad_norm_[elb][mai][bty]*", "store-*-4096x16384-*",
             "switched_linear-*", "training_step*")


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


def is_rival(row: dict) -> bool:
    return not row["candidate"].startswith(NOT_RIVALS)


def lost(row: dict) -> bool:
    return is_rival(row) and row.get("ratio_to_ours", 1.0) < 1.0


def cells(row: dict) -> list[str]:
    if "error" in row:
        return [row["candidate"], "not measured", "", "", "", " ".join(row["error"].split())]
    name = f"**{row['candidate']}**" if row["candidate"].startswith(OURS) else row["candidate"]
    fraction, ratio = row.get("copy_fraction"), row.get("ratio_to_ours")
    agreement = "; ".join(part for part in (row["check"], row["differs"]) if part)
    single = " (1 sample)" if row["samples"] == 1 else ""
    return [name, f"{row['ms_p50']:.4g} [{row['ms_p20']:.4g}, {row['ms_p80']:.4g}]{single}",
            f"{row['gbps']:.1f}" if "gbps" in row else "",
            "" if fraction is None else f"{fraction:.2f}",
            "" if ratio is None else f"{ratio:.2f}" + (f" **{LOSS}**" if lost(row) else ""), agreement]


def glance(rows: list[dict]) -> list[list[str]]:
    """Return a line of GLANCE for every case as it is called (in no CUDA graph): ours, and the fastest rival."""
    lines = []
    for (case, timer), group in cases_of(rows).items():
        ours = next((row for row in group if row.get("ratio_to_ours") == 1.0), None)
        rivals = [row for row in group if is_rival(row) and "ratio_to_ours" in row]
        if timer == "CUDA graph":
            continue
        if ours is None:
            lines.append([case, "not measured", "", "", ""])
            continue
        share = ours.get("copy_fraction")
        line = [case, f"{ours['ms_p50']:.4g}", "" if share is None else f"{share:.2f}"]
        fastest = rivals[0] if rivals else None  # groups are sorted by time
        lines.append([*line, *((fastest["candidate"], f"{fastest['ratio_to_ours']:.2f}"
                                + (f" {LOSS}" if lost(fastest) else "")) if fastest else ("none", ""))])
    return lines


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
    parts += ["## At a glance", table(GLANCE, glance(result["rows"])), "## Targets", _targets(result["targets"]),
              "## Rows we lose", _losses(result["rows"]), "## Every row"]
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


def cpu_table(results: list[dict]) -> str:
    """Return ours and, in times of ours, torch.compile and all other rivals in CPU_CASES of one result."""
    lines = []
    for (case, timer), rows in cases_of(results[0]["rows"]).items():
        ours = next((row for row in rows if row.get("ratio_to_ours") == 1.0), None)
        if ours is None or timer != "wall clock" or first_match(case, CPU_CASES) is None:
            continue
        rivals = {row["candidate"]: row["ratio_to_ours"] for row in rows if is_rival(row) and "ratio_to_ours" in row}
        compiled = [ratio for name, ratio in rivals.items() if name.startswith("torch.compile")]
        others = [f"{name} {ratio:.3g}" for name, ratio in rivals.items() if not name.startswith("torch.compile")]
        share = ours.get("copy_fraction")
        lines.append([case, f"{ours['ms_p50']:.3g}", "" if share is None else f"{share:.2f}",
                      f"{min(compiled):.2f}" if compiled else "", ", ".join(others)])
    return table(("case", "ms", "of a copy", "torch.compile", "others"), lines)


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


def replaced(text: str, new: str, device: str = "cuda") -> str:
    """Return a Markdown text with `new` between the marks of a device's table."""
    before, begin, rest = text.partition(MARKS[device])
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ValueError("report.py: the file must have the two marks of the table")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def write(sources: list[Path], results: list[dict], folder: Path) -> list[Path]:
    """Write a report of every result into the folder, named after its source where there are several."""
    import pictures  # matplotlib, which tables alone do not need

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source, result in zip(sources, results, strict=True):
        prefix = f"{source.stem}_" if len(results) > 1 else ""
        drawn = pictures.draw(result["machine"], result["rows"], folder, prefix)
        links = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
        path = folder / f"{prefix}report.md"
        path.write_text(markdown(result) + links)
        written += [path, *drawn]
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--out", type=Path, metavar="DIR")
    to.add_argument("--into", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    results = [json.loads(source.read_text()) for source in arguments.results]
    if arguments.into:
        device = results[0]["machine"]["device"]
        new = cpu_table(results) if device == "cpu" else gpu_table(results)
        arguments.into.write_text(replaced(arguments.into.read_text(), new, device))
        return
    write(arguments.results, results, arguments.out)


if __name__ == "__main__":
    main()
