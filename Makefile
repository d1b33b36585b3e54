# From a clean clone: `make demo` and `make test` create .venv, install torch, build the extension and run.
# TORCH and PYTHON name others, for example `make test TORCH=torch==2.11.0 PYTHON=python3.12`: each pair has an environment of
# its own, .venv-python3.12-torch2.11.0.

TORCH ?= torch==2.13.0
# Runs of the study at a time, each on one thread.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON ?= python3
# The machine that gpu-prepare prepares for.
GPU_PYTHON ?= python3.12
GPU_TORCH ?= torch==2.11.0
GPU_ARCH ?= 9.0
OTHERS := $(filter command environment,$(foreach name,TORCH PYTHON,$(origin $(name))))
VENV := .venv$(if $(OTHERS),-$(notdir $(PYTHON))-$(subst =,,$(TORCH)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CPP := $(shell find csrc tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml $(filter csrc/%,$(CPP))

# What an extra of the installed package asks for, so that installing it does not build the package again.
# Conditions on the Python version stay: the one on the extra becomes one that is true.
REQUIRES := import importlib.metadata as m, sys; extra = f"extra == \"{sys.argv[1]}\""; \
	print(*(r.replace(extra, "python_version > \"3\"") for r in m.requires("mtlkernels") if extra in r), sep="\n")

.PHONY: demo test test-frameworks lint docs bench bench-smoke study study-smoke gpu-check gpu-prepare dist-check clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

test: $(VENV)/.test $(VENV)/.demo $(VENV)/.data
	$(BIN)/python -m pytest

test-frameworks: $(VENV)/.test $(VENV)/.frameworks
	$(BIN)/python -m pytest -m frameworks

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# The site, with warnings as errors; open docs/_build/index.html.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --jobs auto docs docs/_build

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks --json mtlkernels-bench/results.json --plot mtlkernels-bench

bench-smoke: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-only -k smoke

# Killed and started again, it goes on where it was. Its page and results are part of the repository.
study: $(VENV)/.demo $(VENV)/.data
	$(BIN)/python -m studies.imbalance run studies/imbalance/study.json --out studies/imbalance/results --jobs $(JOBS)
	$(BIN)/python -m studies.imbalance report studies/imbalance/study.json --out studies/imbalance/results --page docs/study.md

study-smoke: $(VENV)/.demo $(VENV)/.data
	rm -rf mtlkernels-study-smoke
	$(BIN)/python -m studies.imbalance run studies/imbalance/smoke.json --out mtlkernels-study-smoke --jobs $(JOBS)
	$(BIN)/python -m studies.imbalance report studies/imbalance/smoke.json --out mtlkernels-study-smoke --page mtlkernels-study-smoke/page.md

# With the Python that is there and its torch: nothing is installed. It builds only where what gpu-prepare made does not load.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

# Fills .gpu, which travels with the checkout, on a machine with nvcc and a network: libraries and kernels for that machine.
gpu-prepare:
	$(PYTHON) -m benchmarks.gpu_check.prepare --python $(GPU_PYTHON) --torch $(GPU_TORCH) --arch $(GPU_ARCH)

# The tests of several ranks on NCCL with a GPU each, two and where there are as many four, with the Python that is there.
dist-check:
	MTLKERNELS_DIST=nccl $(PYTHON) -m pytest -m dist tests/distributed/test_distributed.py tests/distributed/test_self_check_ranks.py

clean:
	rm -rf .venv .venv-* .gpu build docs/_build docs/methods dist *.egg-info mtlkernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .triton

# torch first, alone and pinned: nothing installed later pulls another one, and the build sees the one that runs.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)" "setuptools>=77" wheel pybind11 ninja numpy
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable .
	touch $@

# LibMTL asks for a torchvision, of which there may be none for the torch that is tested.
$(VENV)/.demo $(VENV)/.data $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.bench $(VENV)/.frameworks: $(VENV)/.%: $(VENV)/.built
	$(BIN)/python -c '$(REQUIRES)' $* > $(VENV)/$*.txt
	$(PIP) -r $(VENV)/$*.txt
	$(if $(filter frameworks,$*),$(PIP) --no-deps LibMTL)
	touch $@
