#!/usr/bin/env bash
# Everything that needs a CUDA machine, in one command:   bench/gpu_check.sh OUT
# Builds, tests, sanitizes, checks codes, measures. A stage that fails is recorded and the next one runs. Seven files in
# OUT: build.log tests.log sanitizer.log codes.log bench.log results.json report.md. Under 9 minutes. No GPU setting is
# changed. PYTHON names the interpreter (it must have a CUDA torch, pytest, pytest-benchmark, rich and matplotlib).
set -u

OUT=$(mkdir -p "${1:?usage: bench/gpu_check.sh OUT}" && cd "$1" && pwd)
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
PYTHON=${PYTHON:-python3}
SUMMARY=()
FAILED=0

# stage NAME SECONDS LOG COMMAND...: run with a limit, append the output to LOG, remember how it ended.
stage() {
  local name=$1 limit=$2 log=$OUT/$3 start=$SECONDS status
  shift 3
  echo "== $name: $*" | tee -a "$log"
  timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  local verdict=ok
  [ $status -eq 0 ] || { verdict="FAILED ($status)"; FAILED=1; }
  [ $status -ne 124 ] || verdict="OUT OF TIME (${limit}s)"
  SUMMARY+=("$(printf '%-22s %-20s %5ds  %s' "$name" "$verdict" $((SECONDS - start)) "$3")")
  [ $status -eq 0 ] || tail -n 15 "$log"
  return $status
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,memory.total --format=csv
  nvcc --version | tail -n 2
  "$PYTHON" -c 'import platform, torch, triton; print(platform.python_version(), torch.__version__, torch.version.cuda,
    triton.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())'
}

# The checkout stays as it was: built from a copy, installed beside it.
build() {
  cp -r "$ROOT" "$WORK/source" && cd "$WORK/source" && rm -rf build mbq_kernels/*.so &&
    MBQ_CUDA=on MBQ_CUDA_ARCHS=${MBQ_CUDA_ARCHS:-90} "$PYTHON" -m pip install --no-build-isolation --no-deps \
      --target "$WORK/site" .
}

sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" bench/sanitize_ops.py "${@:2}"
}

rm -f "$OUT"/{build,tests,sanitizer,codes,bench}.log "$OUT"/{results.json,report.md}
export -f environment build sanitize
export PYTHON ROOT WORK
stage environment 60 build.log bash -c environment
stage build 240 build.log bash -c build
cd "$WORK/source" || exit 1
rm -rf mbq_kernels python/mbq_train python/mbq_store # what is tested is what was installed
export PYTHONPATH=$WORK/site
stage info 60 build.log "$PYTHON" -m mbq_kernels.info
stage tests 150 tests.log "$PYTHON" -m pytest tests -q -x --maxfail=20 -p no:cacheprovider -k "cuda or triton or gpu"
stage memcheck 60 sanitizer.log bash -c "sanitize memcheck cuda"
stage racecheck 60 sanitizer.log bash -c "sanitize racecheck cuda"
stage "memcheck triton" 60 sanitizer.log bash -c "sanitize memcheck triton"
stage codes 60 codes.log "$PYTHON" bench/check_codes.py --device cuda --values 3e7
stage benchmarks 150 bench.log "$PYTHON" -m pytest bench -q -p no:cacheprovider --mbq-device cuda \
  --mbq-json "$OUT/results.json"
stage report 60 bench.log "$PYTHON" bench/report.py "$OUT/results.json" --out "$WORK/report"
cp "$WORK/report/report.md" "$OUT/report.md"

echo
printf '%s\n' "stage                  result                 time  log" "${SUMMARY[@]}"
exit $FAILED
