# `make demo` and `make test` set everything up on a fresh machine (Python 3.10+, a C++ compiler, cmake) and run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two architectures are what the tests read; a release builds all that nvcc knows (leave MBQ_CUDA_ARCHS empty).
export MBQ_CUDA_ARCHS ?= 80;90
# Threads that wait by spinning starve each other when the machine has other work.
export OMP_WAIT_POLICY ?= passive

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: demo test bench clean

demo: $(VENV)/installed
	$(BIN)/mbq train --data digits --bits 8,4,2 --out runs/digits --overwrite

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadscope

bench: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[test,bench]"
	$(BIN)/python -m pytest bench

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy "setuptools>=77" ninja pybind11
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist mbq_kernels/_C.so *.egg-info
