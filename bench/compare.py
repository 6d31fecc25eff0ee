"""What changed between two runs: times of ours over those of a copy, or of float steps, in the same run.

Times themselves are noise between runs: another load, clock or machine moves all of them alike.
"""

from dataclasses import dataclass

from rows import OURS
from targets import FLOAT_STEPS, UNQUANTIZED

BASES = ("copy", FLOAT_STEPS, UNQUANTIZED)  # what ours is divided by: the first that a case has
FACTS = ("device", "cpu", "threads", "instruction_set", "freed_memory")  # in which two runs should agree


@dataclass(frozen=True)
class Change:
    """ratio: (ours / base) after over before, > 1: slower; noise: of that ratio, from 20/80 quantiles."""
    case: str
    candidate: str
    timer: str
    base: str
    ratio: float
    noise: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """changes: the most slowed down first; remarks: what cannot be compared, and how the machines differ."""
    changes: list[Change]
    remarks: list[str]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "slower"]


def compare(before: dict, after: dict, tolerance: float) -> Comparison:
    """Compare every time of ours that both results have and that has a base in both."""
    runs = [_timed(result["rows"]) for result in (before, after)]
    changes, alone = [], []
    for key in runs[0].keys() | runs[1].keys():
        case, timer, candidate = key
        if not candidate.startswith(OURS) or candidate == "mbq reference":
            continue
        base = next((base for base in BASES if all((case, timer, base) in run for run in runs)), None)
        if base is None or any(key not in run for run in runs):
            alone.append(case)
            continue
        changes.append(_change(key, base, [(run[key], run[case, timer, base]) for run in runs], tolerance))
    remarks = [f"{len(set(alone))} cases have times that are not in both, or no copy beside them"] if alone else []
    for fact in FACTS:
        values = [result["machine"].get(fact) for result in (before, after)]
        remarks += [f"the runs differ in {fact}: {values[0]}, {values[1]}"] if values[0] != values[1] else []
    small = any(result.get("small") for result in (before, after))
    remarks += ["tiny shapes: a check that everything runs, not a measurement"] if small else []
    return Comparison(sorted(changes, key=lambda change: (-change.ratio, change.case, change.candidate)), remarks)


def _timed(rows: list[dict]) -> dict[tuple, dict]:
    return {(row["case"], row["timer"], row["candidate"]): row for row in rows if "ms_p50" in row}


def _change(key, base: str, pairs: list[tuple[dict, dict]], tolerance: float) -> Change:
    case, timer, candidate = key
    earlier, later = (ours["ms_p50"] / copied["ms_p50"] for ours, copied in pairs)
    spreads = [(row["ms_p80"] - row["ms_p20"]) / (2 * row["ms_p50"]) for pair in pairs for row in pair]
    ratio, noise = later / earlier, sum(spread**2 for spread in spreads) ** 0.5
    beyond = 1 + max(tolerance, noise)
    verdict = "slower" if ratio > beyond else "faster" if ratio < 1 / beyond else ""
    return Change(case, candidate, timer, base, ratio, noise, verdict)
