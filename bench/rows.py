"""Rows of results: what a measured case is, and its rates and ratios."""

OURS = ("mbq", "accelerate(")  # how candidates that run our kernels begin
EXCUSED = ("NotImplementedError", "ModuleNotFoundError", "ImportError")  # of accelerate: there is nothing to replace


def failed(row: dict) -> bool:
    """Return whether a row of ours has no number though it should."""
    name, error = row["candidate"], row.get("error", "")
    return bool(error) and (name.startswith("mbq") or name.startswith(OURS) and not error.startswith(EXCUSED))


def row_of(case, name: str, **more) -> dict:
    return {"case": case.name, "op": case.op, "candidate": name, "shape": case.shape, "numel": case.numel,
            "dtype": str(case.dtype).removeprefix("torch."), "what": case.what, "bits": list(case.bits),
            "axis": case.axis, "bytes": case.bytes, **more}


def fill_ratios(case, rows: list[dict], ours: str) -> None:
    """GB/s by the case's formula, the share of the copy's GB/s, and each candidate's time over ours."""
    for row in rows:
        if "ms_p50" not in row:
            continue
        same = {r["candidate"]: r["ms_p50"] for r in rows if r.get("timer") == row["timer"]}
        moved = 2 * case.numel * case.dtype.itemsize if row["candidate"] == "copy" else case.bytes
        row["gbps"] = moved / row["ms_p50"] / 1e6
        if "copy" in same:
            row["copy_fraction"] = row["gbps"] / (2 * case.numel * case.dtype.itemsize / same["copy"] / 1e6)
        if ours in same:
            row["ratio_to_ours"] = row["ms_p50"] / same[ours]
