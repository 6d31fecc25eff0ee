#!/usr/bin/env bash
# Everything that needs a CUDA machine, in one command, under 9 minutes:   bench/gpu_check.sh OUT
# Builds, tests, measures, checks codes, sanitizes. A stage that fails is recorded and the next one runs. OUT gets
# build.log tests.log bench.log codes.log sanitizer.log results.json report.md summary.txt. No GPU setting is changed.
# PYTHON names the interpreter: it has a CUDA torch, triton, numpy, cmake, ninja, pybind11, setuptools, pytest,
# pytest-benchmark, rich, typer, safetensors, scikit-learn, matplotlib, pillow and pyarrow.
set -u

OUT=$(mkdir -p "${1:?usage: bench/gpu_check.sh OUT}" && cd "$1" && pwd)
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
BUDGET=530 # seconds in all
FAILED=0
export OUT ROOT WORK PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 MBQ_CUDA=on MBQ_CUDA_ARCHS=${MBQ_CUDA_ARCHS:-90}
rm -f "$OUT"/{build,tests,bench,codes,sanitizer}.log "$OUT"/{results.json,report.md,summary.txt}

# stage NAME SECONDS LOG COMMAND...: run within the limit and what is left of the budget; note how it ended.
stage() {
  local name=$1 limit=$2 log=$3 start=$SECONDS status verdict=ok
  shift 3
  [ $((BUDGET - SECONDS)) -ge "$limit" ] || limit=$((BUDGET - SECONDS))
  if [ "$limit" -lt 5 ]; then
    verdict="NOT RUN, no time left" FAILED=1
  else
    echo "== $name" | tee -a "$OUT/$log"
    timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$OUT/$log" 2>&1
    status=$?
    case $status in 0) ;; 124 | 137) verdict="OUT OF TIME (${limit}s)" ;; *) verdict="FAILED ($status)" ;; esac
    [ $status -eq 0 ] || { FAILED=1; tail -n 12 "$OUT/$log"; }
  fi
  printf '%-16s %-24s %4ds  %s\n' "$name" "$verdict" $((SECONDS - start)) "$log" >>"$OUT/summary.txt"
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,memory.total --format=csv
  nvcc --version | tail -n 2
  "$PYTHON" -c 'import platform, torch, triton; print(platform.python_version(), torch.__version__, torch.version.cuda,
    triton.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())'
}

# The checkout stays as it was: a copy is built and installed into a folder, and the libraries go back into the copy,
# so that tests and benches find their sources beside what they load.
build() {
  tar -C "$ROOT" --exclude=./.venv --exclude=./build --exclude='*.so' -cf - . | tar -C "$WORK/source" -xf - &&
    cd "$WORK/source" &&
    "$PYTHON" -m pip install --no-build-isolation --no-deps --target "$WORK/site" . ./python/mbq_store &&
    cp "$WORK"/site/mbq_kernels/*.so mbq_kernels/ && cp "$WORK"/site/mbq_store/*.so python/mbq_store/mbq_store/
}

# What has a GPU in its name; the rest is what machines without one run.
tests() {
  "$PYTHON" -m pytest tests -q -p no:cacheprovider --maxfail=40 -k "cuda-cuda or cuda-triton" \
    $("$PYTHON" -c 'import xdist; print("-n", max(2, (__import__("os").cpu_count() or 2) - 1))')
}

# With all rivals a case takes some 4 seconds, most of them to compile: the cases that have targets.
benches() {
  local cases="(test_codes and 64Mi) or (fake_quantize-tensor-64Mi and not affine) or el2n-65536x1000 \
or el2n-2048x128Ki or fake_quantize-tensor-1Mi-float32-forward+backward or (test_sample_grad_norm and (design or long)) \
or ((fake_quantize_multi-tensor or double_round-axis0) and 4096x4096-float32-forward+backward) \
or (test_lsb and 4096x4096-float32 and not round_clamp-) or (test_switched_linear and (rows1 or codes4))"
  "$PYTHON" -m pytest bench -p no:cacheprovider --mbq-device cuda --mbq-json "$OUT/results.json" -q --tb=line -k "$cases"
}

sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" bench/sanitize_ops.py "$2"
}

export -f environment build tests benches sanitize
mkdir "$WORK/source" && cd "$WORK/source" || exit 1
export PYTHONPATH=$WORK/source:$WORK/source/python:$WORK/source/python/mbq_store
stage environment 30 build.log bash -c environment
stage build 120 build.log bash -c build
stage info 30 build.log "$PYTHON" -m mbq_kernels.info
stage "every op" 40 sanitizer.log "$PYTHON" bench/sanitize_ops.py
stage benchmarks 190 bench.log bash -c benches
stage report 20 bench.log "$PYTHON" bench/report.py "$OUT/results.json" --out "$WORK/report"
cp "$WORK/report/report.md" "$OUT/report.md"
stage tests 120 tests.log bash -c tests
stage "codes" 40 codes.log "$PYTHON" bench/check_codes.py --device cuda --values 3e7
stage "memcheck cuda" 40 sanitizer.log bash -c "sanitize memcheck cuda"
stage "racecheck cuda" 40 sanitizer.log bash -c "sanitize racecheck cuda"
stage "memcheck triton" 40 sanitizer.log bash -c "sanitize memcheck triton"

printf '\n%-16s %-24s %5s  %s\n' stage result time log
cat "$OUT/summary.txt"
exit $FAILED
