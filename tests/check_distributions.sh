#!/usr/bin/env bash
# What users install, in clean virtual environments outside the clone:   tests/check_distributions.sh store kernels lab
# store: mbq-store from its folder and from its sdist, without torch, with its tests. kernels: the wheel that WHEEL names
# with torch and numpy alone. lab: the extra of the command mbq beside it, and the benchmarks in the wheel. PYTHON names
# the Python they are tried with.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
CLEAN=$(mktemp -d)
trap 'rm -rf "$CLEAN"' EXIT
unset PYTHONPATH

# fresh NAME PACKAGES...: a virtual environment of these.
fresh() {
  "$PYTHON" -m venv "$CLEAN/$1"
  "$CLEAN/$1/bin/python" -m pip install -q -c "$ROOT/constraints.txt" "${@:2}"
}

# said TEXT COMMAND...: the command prints the text, whether it ends well or not.
said() {
  local printed
  printed=$("${@:2}" 2>&1) || true
  case $printed in *"$1"*) ;; *) echo "no '$1' in what '${*:2}' prints: $printed" >&2 && return 1 ;; esac
}

# try_store NAME TESTS...: with no package of this clone but the store, and the tests away from the clone beside them.
try_store() {
  (cd "$CLEAN" && "$CLEAN/$1/bin/python" -c 'import importlib.util, mbq_store, sys
assert not any(importlib.util.find_spec(name) for name in ("torch", "mbq_kernels", "mbq_train"))
print("mbq-store", mbq_store.__version__, "from", mbq_store.__file__)')
  cp "$ROOT"/tests/test_store*.py "$ROOT/tests/stores.py" "$CLEAN"
  (cd "$CLEAN" && "$CLEAN/$1/bin/python" -m pytest -q -p no:cacheprovider "${@:2}")
}

store() {
  fresh folder numpy safetensors pytest "$ROOT/python/mbq_store"
  try_store folder test_store_switch.py
  fresh sdist numpy safetensors pytest "setuptools>=77"
  (cd "$ROOT/python/mbq_store" && "$CLEAN/sdist/bin/python" setup.py -q sdist -d "$CLEAN/dist")
  "$CLEAN/sdist/bin/python" -m pip install -q "$CLEAN"/dist/mbq_store-*.tar.gz
  try_store sdist .
}

kernels() {
  fresh kernels "$WHEEL"
  cd "$CLEAN"
  kernels/bin/python -m mbq_kernels.info
  said "pip install 'mbq-kernels[lab]'" kernels/bin/mbq --help
  kernels/bin/python - <<'END'
import torch
from mbq_train import convert, set_bits

import mbq_kernels

assert mbq_kernels.backends("fake_quantize")[0] == "cpu", "the wheel lacks _C.so"
network = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4)))
model = convert(network, (8, 2), example=torch.randn(4, 6))
set_bits(model, 2)
model(torch.randn(4, 6)).sum().backward()
assert len(model[1].weight.unique()) > 4 and model[1].weight.grad.any()
END
}

lab() {
  fresh kernels "$WHEEL[lab]"
  cd "$CLEAN"
  said Usage: kernels/bin/mbq --help
  : > network.store
  said "pip install ./python/mbq_store" kernels/bin/mbq inspect network.store
  said "pip install 'mbq-kernels[bench]'" kernels/bin/mbq bench
  kernels/bin/python -m pip install -q -c "$ROOT/constraints.txt" pytest pytest-benchmark
  said "not measured: torchao (No module named 'torchao'), Brevitas" kernels/bin/mbq bench fake_quantize_affine --quick
  kernels/bin/mbq bench double_round --quick --out bench.json
  kernels/bin/mbq bench --report bench.json --out report
  kernels/bin/python - <<'END'
import json
import pathlib

import mbq_lab

folder = pathlib.Path(mbq_lab.__file__).parent / "bench"
assert not {path.suffix for path in folder.iterdir() if path.is_file()} - {".py", ".ini", ".json"}, "results in the wheel"
facts = json.loads(pathlib.Path("bench.json").read_text())["machine"]
assert facts["commit"].startswith("version "), "the commit of somebody else's repository"
assert pathlib.Path("report/ratios1.png").stat().st_size > 10000
END
}

for part in "$@"; do "$part"; done
