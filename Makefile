# `make demo` and `make test` set everything up on a fresh machine (Python 3.10+, a C++ compiler, cmake) and run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt
# Threads that wait by spinning starve each other when the machine has other work.
export OMP_WAIT_POLICY ?= passive

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py cmake_build.py pyproject.toml constraints.txt \
	$(wildcard python/mbq_store/*.py python/mbq_store/*.t*)
FORMATTED := $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: demo test test-all counts lint bench clean

demo: $(VENV)/installed
	$(BIN)/mbq train --data digits --bits 8,4,2 --out runs/digits --overwrite

# What the tests read of CUDA kernels is compiled before them, because some measure time.
test: $(VENV)/tests-installed
	PYTHONPATH=. $(BIN)/python tests/cuda_objects.py
	$(BIN)/python -m pytest -n auto --dist loadscope -m "not long"

test-all: export MBQ_EXAMPLES ?= 2000
test-all: $(VENV)/tests-installed
	PYTHONPATH=. $(BIN)/python tests/cuda_objects.py
	$(BIN)/python -m pytest -n auto --dist loadscope

# What tests and benchmarks say of the machine code of CUDA kernels, after these have changed.
counts: $(VENV)/tests-installed
	PYTHONPATH=. $(BIN)/python tests/machine_code.py
	$(BIN)/python bench/report.py bench/results/h*.json --into README.md

lint: $(VENV)/lint-installed
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

bench: $(VENV)/installed
	$(PIP) --no-build-isolation -e ".[lab,test,bench]"
	$(BIN)/python -m pytest bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) | $(BIN)/python
	@echo "Installing and building: a few minutes (CPU kernels, and CUDA kernels where nvcc and a GPU are)"
	$(PIP) torch numpy "setuptools>=77" ninja pybind11
	$(PIP) --no-build-isolation -e ".[lab]" -e ./python/mbq_store
	touch $@

$(VENV)/tests-installed: $(VENV)/installed
	$(PIP) --no-build-isolation -e ".[lab,test]"
	touch $@

$(VENV)/lint-installed: constraints.txt | $(BIN)/python
	$(PIP) ruff clang-format
	touch $@

clean:
	rm -rf $(VENV) build dist mbq_kernels/_C.so *.egg-info \
		python/mbq_store/build python/mbq_store/*.egg-info python/mbq_store/mbq_store/_core*.so
