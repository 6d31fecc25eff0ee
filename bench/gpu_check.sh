#!/usr/bin/env bash
# All that needs a GPU, in two calls:   bench/gpu_check.sh a|b [--out DIR] [--ops OP...] [--stages STAGE...] [--dry]
# PYTHON names the interpreter. gpu_check.py says what it must have, and what comes out.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
