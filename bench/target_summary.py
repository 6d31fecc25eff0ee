"""Say which targets were held, missed or not reached, and how far two runs are apart.

    python bench/target_summary.py RESULTS.json [AGAIN.json]
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import targets  # noqa: E402

FURTHEST = 8  # cases whose two times are printed


def verdict_lines(result: dict) -> list[str]:
    """Return a line for every target of the device: of a case, or that no case of it was measured."""
    device, entries = result["machine"]["device"], result["targets"]
    lines = [f"{'held' if entry['met'] else 'MISSED' if entry['met'] is False else 'not decided':12} "
             f"{targets.message(entry)}" for entry in sorted(entries, key=lambda entry: bool(entry["met"]))]
    for target in targets.TARGETS:
        if target.device == device and not any(_is_of(target, entry) for entry in entries):
            lines.append(f"{'not reached':12} {target.case}: wanted >= {target.at_least:.2f} x "
                         f"{' / '.join(target.rivals)}")
    return lines


def _is_of(target: targets.Target, entry: dict) -> bool:
    return (fnmatchcase(entry["case"], target.case) and entry["rivals"] == list(target.rivals)
            and entry["at_least"] == target.at_least)


def spread_lines(first: dict, second: dict) -> list[str]:
    """Return how far our times of two runs are apart, the furthest first."""
    times = [{(row["case"], row["timer"], row["candidate"]): row["ms_p50"] for row in result["rows"]
              if "ms_p50" in row and row["candidate"].startswith("mbq")} for result in (first, second)]
    apart = sorted(((abs(times[1][key] / times[0][key] - 1), key) for key in times[0].keys() & times[1].keys()),
                   reverse=True)
    if not apart:
        return ["spread: nothing was measured twice"]
    return [f"spread: {len(apart)} times of ours, half of them within {apart[len(apart) // 2][0]:.1%}",
            *(f"spread {share:6.1%}  {case}, {name} ({timer})" for share, (case, timer, name) in apart[:FURTHEST])]


def main(paths: list[str]) -> None:
    results = [json.loads(Path(path).read_text()) for path in paths if Path(path).exists()]
    if not results:
        sys.exit(f"no case was measured: there is no {' or '.join(paths)}")
    lines = [] if results[0]["small"] else verdict_lines(results[0])
    print(*lines, *(spread_lines(*results) if len(results) > 1 else []), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
