"""What has to be reached, in one table. Every number is a ratio inside one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import lsb_rivals as lsb
from norm_rivals import OPACUS, RIVALS
from rivals import (
    COMPILED,
    COMPILED_DOUBLE,
    EAGER,
    JOINT,
    NETWORK,
    SINGLE_CALLS,
    TORCH_FIXED,
    TORCH_LEARNABLE,
)

FLOAT_STEPS, UNQUANTIZED = "four float steps", "unquantized"
LARGE = ("512x512x3x3", "64x64x56x56", "1Mi", "4096x4096", "64Mi", "resnet50")
COPY = ("copy",)  # here the ratio is our GB/s by the formula over the copy's


@dataclass(frozen=True)
class Target:
    """On `device`, in cases that match `case`: (fastest of `rivals`) / ours, or our share of the copy, >= at_least."""
    device: str
    case: str
    rivals: tuple[str, ...]
    at_least: float


TARGETS = (
    # A streaming op moves the bytes that it must move: its target is a share of the copy.
    *(Target("cpu", f"fake_quantize-*-{shape}-*", COPY, 0.95) for shape in LARGE),
    # 1.05 and, in groups of 32, 1.15 times what whole channels take at 0.95 of a copy
    *(Target("cpu", f"fake_quantize-axis0-groups{size}-*", COPY, share)
      for size, share in ((128, 0.90), (64, 0.90), (32, 0.82))),
    Target("cpu", "fake_quantize-tensor-4x4-*-forward", (TORCH_LEARNABLE,), 1 / 2.0),
    Target("cpu", "fake_quantize-tensor-4x4-*-forward+backward", (TORCH_LEARNABLE,), 1 / 1.2),
    Target("cpu", "fake_quantize-*-forward+backward", (COMPILED,), 1.0),
    Target("cpu", "fake_quantize-tensor-64Mi-float32-forward", (TORCH_FIXED,), 3.5),
    Target("cpu", "fake_quantize_multi-*", COPY, 0.95),
    Target("cpu", "fake_quantize_multi-*-forward+backward", (COMPILED, JOINT), 1.5),
    Target("cpu", "fake_quantize_foreach-axis0-resnet20-float32-forward+backward", (SINGLE_CALLS,), 3),
    Target("cpu", "fake_quantize_foreach-*-forward+backward", (COMPILED, JOINT, NETWORK), 1.5),
    Target("cpu", "fake_quantize_affine-*-float32-forward+backward", (TORCH_LEARNABLE,), 5),
    Target("cpu", "fake_quantize_dynamic-*-forward", COPY, 0.90),
    Target("cpu", "fake_quantize_dynamic-*-forward+backward", ("eager PyTorch",), 3),
    Target("cpu", "double_round-*", COPY, 0.95),
    Target("cpu", "double_round-*-forward+backward", (COMPILED_DOUBLE, JOINT), 1.5),
    Target("cpu", "training_step-*", (FLOAT_STEPS,), 1 / 1.10),
    Target("cpu", "*lsb*-tensor-*x*-float32-forward+backward", COPY, 0.90),
    Target("cpu", "lsb_penalty-*-float32-forward+backward", (lsb.EAGER,), 20),
    Target("cpu", "*lsb*-float32-forward+backward", (lsb.COMPILED, lsb.NETWORK), 1.0),
    *(Target(device, f"{op}-*-64Mi", COPY, 0.95) for device in ("cpu", "cuda")
      for op in ("switch_bits", "dequantize_codes", "pack_codes", "to_planes")),
    Target("cpu", "quantize_codes-*-64Mi", ("eager integers",), 3),
    Target("cpu", "correct_weight_bias-*", ("torch.compile(eager)",), 1.0),
    Target("cpu", "fake_quantize_corrected-*", ("torch.compile(eager)",), 1.0),
    *(Target("cpu", f"el2n-{shape}-*", ("eager PyTorch",), 5) for shape in ("65536x1000", "2048x128Ki")),
    *(Target("cpu", f"el2n-{shape}-*", COPY, 0.90) for shape in ("65536x1000", "2048x128Ki")),
    *(Target("cpu", f"{op}-*", ("torch.compile(eager)",), 1.0) for op in ("el2n", "cross_entropy_el2n")),
    Target("cpu", "switched_linear-*-rows1-*", ("dequantize + linear",), 1.0),
    Target("cpu", "switched_linear-codes*-rows1-28672x8192", ("linear bfloat16",), 1.5),
    Target("cpu", "switched_linear-planes*-rows1-28672x8192", ("linear bfloat16",), 1.2),
    *(Target("cpu", f"sample_grad_norm_{layer}-*", RIVALS, 1 / 1.05) for layer in ("linear", "conv2d")),
    *(Target("cpu", f"sample_grad_norm_{layer}-*", ("torch.compile(eager)",), 1 / 1.05)
      for layer in ("embedding", "layer_norm", "batch_norm")),
    Target("cpu", "sample_grad_norm_linear-design-*", (OPACUS,), 2),
    *(Target("cpu", f"sample_grad_norm_{case}-*", RIVALS, 1.5)  # here Gram products are the cheaper way
      for case in ("linear-design", "linear-short", "linear-vit_s", "linear-llama", "linear-middle",
                   "conv2d-resnet18-N8-T14-256to256", "conv2d-resnet18-N8-T7-512to512")),
    Target("cuda", "fake_quantize-tensor-64Mi-*-forward", COPY, 0.95),
    Target("cuda", "fake_quantize-tensor-64Mi-float32-forward+backward", COPY, 0.94),
    Target("cuda", "fake_quantize-tensor-64Mi-bfloat16-forward+backward", COPY, 0.92),
    Target("cuda", "fake_quantize-*-4096x4096-float32-forward+backward", COPY, 0.90),
    Target("cuda", "fake_quantize-*-forward+backward", (COMPILED,), 0.95),
    Target("cuda", "fake_quantize-tensor-64Mi-float32-forward+backward", (TORCH_LEARNABLE,), 1.6),
    Target("cuda", "fake_quantize-tensor-1Mi-float32-forward+backward", (TORCH_LEARNABLE,), 4),
    Target("cuda", "fake_quantize-tensor-64Mi-float32-forward+backward", (EAGER,), 5),
    Target("cuda", "fake_quantize_multi-*-4096x4096-float32-forward+backward", COPY, 0.93),
    Target("cuda", "fake_quantize_multi-*-4096x4096-bfloat16-forward+backward", COPY, 0.90),
    # The joint function moves the same bytes in one launch fewer: at the speed of a copy we are 1.16 to 1.23 times it.
    Target("cuda", "fake_quantize_multi-*-4096x4096-*-forward+backward", (JOINT,), 1.10),
    Target("cuda", "fake_quantize_multi-*-4096x4096-*-forward+backward", (COMPILED,), 3),
    Target("cuda", "fake_quantize_multi-*-512x512x3x3-*-forward+backward", (COMPILED, JOINT), 1.3),
    Target("cuda", "double_round-*-4096x4096-*-forward+backward", (JOINT,), 1.10),
    Target("cuda", "double_round-*-512x512x3x3-*-forward+backward", (COMPILED_DOUBLE, JOINT), 1.3),
    Target("cuda", "fake_quantize_foreach-*-forward+backward", (COMPILED, JOINT, NETWORK), 2),
    Target("cuda", "*lsb*-4096x4096-*", COPY, 0.92),
    Target("cuda", "round_clamp-*-4096x4096-*", COPY, 0.92),
    Target("cuda", "el2n-65536x1000-float32-*", COPY, 0.90),
    Target("cuda", "el2n-2048x128Ki-float32-*", COPY, 0.90),
    Target("cuda", "switched_linear-codes*-rows1-28672x8192", ("linear bfloat16",), 1.7),
    Target("cuda", "switched_linear-planes*-rows1-28672x8192", ("linear bfloat16",), 1.5),
    Target("cuda", "sample_grad_norm_linear-*-float32", (OPACUS,), 2),
    Target("cuda", "sample_grad_norm_linear-*-bfloat16", (OPACUS,), 4),
    Target("cuda", "training_step-*", (FLOAT_STEPS,), 1 / 1.10),
)


def first_match(name: str, globs: Sequence[str]) -> int | None:
    """Return the place of the first glob that `name` matches, or None."""
    return next((place for place, glob in enumerate(globs) if fnmatchcase(name, glob)), None)


def verdicts(device: str, rows: list[dict]) -> list[dict]:
    """One entry per target that is about these rows' case: the measured ratio, and whether it is enough.

    The timer is the one that times the call as it is made (wall clock, CUDA events). A target whose rivals were not
    measured is not decided: `met` is None.
    """
    measured = {row["candidate"]: row for row in rows if row.get("timer") in ("wall clock", "CUDA events")}
    ours = next((row for name, row in measured.items() if row.get("ratio_to_ours") == 1.0), None)
    entries = []
    for target in TARGETS:
        if target.device != device or not fnmatchcase(rows[0]["case"], target.case):
            continue
        times = {name: measured[name]["ms_p50"] for name in target.rivals if name in measured}
        ratio = None
        if ours and times:
            ratio = ours["copy_fraction"] if target.rivals == COPY else min(times.values()) / ours["ms_p50"]
        entries.append({"case": rows[0]["case"], "rivals": list(target.rivals), "at_least": target.at_least,
                        "ratio": ratio, "met": None if ratio is None else ratio >= target.at_least})
    return entries


def message(entry: dict) -> str:
    against = "the copy's GB/s" if tuple(entry["rivals"]) == COPY else f"the speed of {' / '.join(entry['rivals'])}"
    measured = "not decided, no such row" if entry["ratio"] is None else f"measured {entry['ratio']:.2f} x"
    return f"{entry['case']}: {measured}, wanted >= {entry['at_least']:.2f} x {against}"
