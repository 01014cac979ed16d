# Everything on a fresh machine: `make sample` and `make test`. Both set up .venv first.
PYTHON ?= python3
CXX ?= g++
BIN := .venv/bin
CORES = $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
SETUP := pyproject.toml setup.py $(wildcard kernels/csrc/*)

.PHONY: sample test lint sanitize bench report gpu demo-stack clean

sample: .venv/engine
	$(BIN)/fastjukebox sample sample.wav --seconds 4 --seed 11 --top-p 0.9,0.8,0.98 --backend auto-int8 --overwrite

test: .venv/dev
	$(BIN)/python -m pytest -n auto

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# The native decoder under the sanitizers: addresses, undefined behaviour, data races.
sanitize:
	@mkdir -p build
	for sanitizer in address,undefined thread; do \
		$(CXX) -std=c++17 -O1 -g -ffp-contract=off -Wno-psabi -fsanitize=$$sanitizer -fno-sanitize-recover=all -pthread \
			tests/kernels/native_driver.cpp kernels/csrc/decode.cpp -o build/native_driver && build/native_driver || exit 1; \
	done

# What this machine can, in some minutes: the decoders' tests, then each benchmark, to build/results and a page from it.
RESULTS := build/results
bench: .venv/dev
	$(BIN)/python -m pytest $(wildcard tests/engine/test_native_*.py)
	@mkdir -p $(RESULTS)
	$(BIN)/python bench peers --device cpu --rounds 7 --threads $(CORES) --backends eager native native-int8 --json $(RESULTS)/peers.jsonl
	$(BIN)/python bench roofline --device cpu --quick --json $(RESULTS)/roofline-cpu.jsonl
	$(BIN)/python bench scaling --device cpu --quick --json $(RESULTS)/scaling-cpu.jsonl
	$(BIN)/python bench int8 --json $(RESULTS)/int8.jsonl
	$(BIN)/python bench table1 --device cpu --rounds 2 --json $(RESULTS)/table1-cpu.jsonl
	$(BIN)/python bench report --results $(RESULTS) --out build/report.html

# The page of the committed results, with players.
report: .venv/dev
	@mkdir -p build
	$(BIN)/python bench report --out build/report.html

# Tests and benchmarks that need an NVIDIA GPU, within nine minutes, with the Python packages that $(PYTHON) has: without
# .venv, whose PyTorch may be another one than the machine's.
gpu:
	$(PYTHON) bench gpu

# The systems of the paper at demo size, from nothing; run it again after a stop. The runs stay in runs/demo-stack. Without
# a GPU as many side by side as there are cores, one thread each, in large pages.
demo-stack: .venv/dev
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/fastjukebox-train stack --work runs/demo-stack --preset demo \
		$$(command -v nvidia-smi >/dev/null || echo --threads 1 --jobs $(CORES))

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) has no venv module; on Debian: apt install python3-venv"; exit 1; }

.venv/engine: .venv/bin/python $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: .venv/bin/python $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/engine
