# Every target sets up what it needs in .venv, and only when pyproject.toml or the checkout's place has changed.
# `make quickstart` and `make test` are the README's two commands; they work in either order.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
# Used to make the environment, once. Give your own with `make test PYTHON=/path/to/python`, or beside the one that is
# there with `make test VENV=.venv-3.13 PYTHON=python3.13`.
PYTHON ?=
PYTEST_ARGS ?=
SOURCES ?=
GPU_ARGS ?=

PY := $(VENV)/bin/python
KEY := $(firstword $(shell { pwd; cat pyproject.toml; } | cksum))
RUN_STAMP := $(VENV)/installed-detection-$(KEY)
DEV_STAMP := $(VENV)/installed-dev-$(KEY)
# An environment whose Python is gone (moved, upgraded) is made anew.
$(shell $(PY) -V >/dev/null 2>&1 || rm -f $(VENV)/installed-*)
INSTALL := $(PY) -m pip install --disable-pip-version-check --editable
DEV_INSTALL = $(INSTALL) '.[dev]'
ifdef DEMO
DEV_INSTALL = $(INSTALL) '.[dev,demo,browser]'
endif
ifdef FLOOR
DEV_INSTALL = $(PY) tests/helpers/floors.py > $(VENV)/floors.txt && $(INSTALL) . --requirement $(VENV)/floors.txt
endif

.PHONY: help quickstart test test-floor test-demo test-page prove reproduce clients gpu docs docs-serve lint format types wheel wheel-cuda clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(RUN_STAMP) ## set up, then train, evaluate and draw a small detector (about 5 minutes on 2 cores)
	$(VENV)/bin/vovnet quickstart --output runs/quickstart --overwrite

test: $(DEV_STAMP) ## set up, then run the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

test-floor: ## set up .venv-floor with the oldest versions that pyproject.toml allows, then run the tests there
	$(MAKE) test VENV=.venv-floor FLOOR=1 PYTHON='$(or $(PYTHON),python3.11)'

test-demo: ## set up .venv-demo with Gradio, then test `vovnet demo` there, also in Chromium where it is installed
	$(MAKE) test VENV=.venv-demo DEMO=1 PYTEST_ARGS='-m "" tests/detection/demo $(PYTEST_ARGS)'

test-page: $(DEV_STAMP) ## test `vovnet export-web` and exported files in Chromium, with ONNX Runtime Web of npm, which is fetched
	$(INSTALL) '.[dev,browser]'
	$(PY) -c 'from vovnet.export.web.runtime import web_runtime; web_runtime()'
	$(PY) -m pytest -m "" tests/vovnet/export/web tests/vovnet/export/test_browser.py tests/detection/export/test_browser.py $(PYTEST_ARGS)

prove: $(DEV_STAMP) ## run the minutes-long proofs: real data, kernels for every GPU, sanitizers over those for CPUs
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

reproduce: $(DEV_STAMP) ## compare the published detectors with the reference's numbers, number by number
	$(PY) -m pytest -q -m reproduce tests/detection/legacy $(PYTEST_ARGS)

# SOURCES has the folders pytorch-image-models/ and vision/, checkouts of timm and torchvision; their tests skip without.
# What is installed here changes versions that `make test` runs with, so it has an environment of its own.
clients: ## run programs of others with our models, in .venv-clients: make clients [SOURCES=DIR]
	$(MAKE) run-clients VENV=.venv-clients

.PHONY: run-clients
run-clients: $(DEV_STAMP)
	$(INSTALL) '.[dev,clients]'
	VOVNET_CLIENT_SOURCES='$(SOURCES)' OMP_NUM_THREADS=1 $(PY) -m pytest -m clients tests/clients -rs $(PYTEST_ARGS)

# Installs nothing: machines with a GPU often come with their own PyTorch, and without a network.
gpu: ## with a GPU: test and time the kernels, training and inference; writes gpu_report.md (at most 9 minutes)
	$(or $(PYTHON),$(if $(wildcard $(PY)),$(PY),python3)) -m benchmarks.gpu $(GPU_ARGS)

# The detector of `make quickstart`, if it has run, is shown in the site. Without a network, give ORT=PATH, which
# `vovnet export-web --ort` takes.
docs: $(DEV_STAMP) ## build the documentation into build/site; a broken link or anchor, or a missing docstring, fails
	@test ! -f runs/quickstart/model.safetensors || $(MAKE) --no-print-directory build/demo/index.html || \
	  echo "The site is built without the quickstart's detector."
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

build/demo/index.html: runs/quickstart/model.safetensors $(wildcard vovnet/export/web/*.py vovnet/export/web/static/*) | $(DEV_STAMP)
	$(PY) -m vovnet.cli export-web runs/quickstart --precision fp16 $(if $(ORT),--ort $(ORT)) --output build/demo --overwrite \
	  --example runs/quickstart/data/val/000427.png --example runs/quickstart/data/val/000442.png

docs-serve: $(DEV_STAMP) ## show the documentation at http://127.0.0.1:8000, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --no-strict --dirty

lint: $(DEV_STAMP) ## check style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV_STAMP) ## mend style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(DEV_STAMP) ## check types
	$(PY) -m mypy
	$(PY) -m pyright

wheel: $(DEV_STAMP) ## build the sdist and its wheels (on Linux on x86-64 one with kernels, too) into dist/, and check them
	rm -rf build dist *.egg-info
	$(PY) -m build --no-isolation --outdir dist
ifeq ($(shell uname -sm),Linux x86_64)
	$(PY) -m vovnet.ops.shipping --wheel dist
endif
	VOVNET_DIST=dist $(PY) -m pytest -q tests/test_packaging.py

wheel-cuda: wheel ## build the wheel with the kernels for GPUs, too; this needs nvcc and takes some minutes
	$(PY) -m vovnet.ops.shipping --cuda --wheel dist
	VOVNET_DIST=dist $(PY) -m pytest -q tests/test_packaging.py -k kernels

clean: ## remove what was built, but neither runs/ nor the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage

# The stamp is touched last, so that an interrupted installation is taken up again.
$(RUN_STAMP):
	$(make_venv)
	@echo "Installing vovnet and what a detector needs into $(VENV) (torch is large: about a minute or two) ..."
	$(INSTALL) '.[detection]'
	@rm -f $(VENV)/installed-*
	@touch $@

$(DEV_STAMP):
	$(make_venv)
	@echo "Installing vovnet and what its tests need into $(VENV) (torch is large: about a minute or two) ..."
	$(DEV_INSTALL)
	@rm -f $(VENV)/installed-*
	@touch $(RUN_STAMP) $@

# Finds Python 3.11+ with venv and pip, and leaves an environment that works alone.
define make_venv
@candidates='$(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)'; \
if ! $(PY) -m pip --version >/dev/null 2>&1; then \
  for candidate in $$candidates; do \
    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
      echo "Making $(VENV) with $$("$$candidate" --version) ..."; \
      "$$candidate" -m venv "$(VENV)"; \
      break; \
    fi; \
  done; \
fi; \
if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
  echo "error: expected Python 3.11 or newer with its venv module, found none among: $$candidates." >&2; \
  echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11;" >&2; \
  echo "if $(VENV) itself was made with an older Python, remove it first." >&2; \
  exit 1; \
fi
endef
