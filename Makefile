# deftly: `make quickstart` on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp for each content of pyproject.toml: a change of it installs again, a touch does not.
STAMP := $(VENV)/.stamp-$(shell cksum pyproject.toml | cut -d ' ' -f 1)
HAS_EGL := $(BIN)/python -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("EGL"))'

# Compiled modules, those of the tests among them, are kept between processes, even where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install quickstart scan-demo test test-slow test-warp vla test-vla test-openpi check docs bench clean gl
.DEFAULT_GOAL := help

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

install: gl ## make .venv and install deftly with everything it can use

quickstart: install ## train, evaluate and watch a small task
	$(BIN)/deftly quickstart

scan-demo: install ## from a scan to a report of success, in build/scan-demo
	$(BIN)/python examples/scan_to_skill.py

test: install ## run the tests
	tests/run.sh $(BIN)/python $(ARGS)

# Above the five minutes of pyproject.toml, after which a test counts as hanging: some of these fuzz for ten minutes, train,
# or compile kernels.
LONG := -o faulthandler_timeout=3600
test-slow: install ## run the long tests too: all episodes of the shipped policies, fuzzing, a fresh installation
	$(BIN)/python -m pytest -m slow $(LONG) $(ARGS)

# The first run compiles kernels for some minutes, which Warp keeps in WARP_CACHE_PATH (without it, in ~/.cache/warp).
test-warp: install ## run the tests of the Warp engine, which needs the extra gpu
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gpu]'
	$(BIN)/python -m pytest -m warp $(LONG) $(ARGS)

# LeRobot needs Python 3.12 and a torch of its own, so it has an environment of its own: .venv-vla/bin/deftly. On a
# computer without an NVIDIA GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves 4 GB.
VLA := .venv-vla
VLA_STAMP := $(VLA)/.stamp-$(shell cksum pyproject.toml | cut -d ' ' -f 1)
PYTHON312 ?= python3.12
TORCH_INDEX ?=
vla: $(VLA_STAMP) ## make .venv-vla (Python 3.12), for deftly demos and deftly finetune

# PYTHON312, else the one that pyenv or uv has, whose python3.12 need not be on the PATH.
$(VLA_STAMP):
	@test -x $(VLA)/bin/python || { \
		for python in $(PYTHON312) "$$(pyenv prefix 3.12 2>/dev/null)/bin/python" "$$(uv python find 3.12 2>/dev/null)"; do \
			"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && \
				exec "$$python" -m venv $(VLA); \
		done; \
		echo "no Python 3.12: make vla PYTHON312=/path/to/python3.12" >&2; exit 1; }
	$(VLA)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) 'torch==2.11.0+cpu') -e '.[train,vla,openpi]' pytest
	@rm -f $(VLA)/.stamp-* && touch $@

test-vla: vla ## run the tests of data sets and models, which need .venv-vla
	HF_HUB_OFFLINE=1 $(VLA)/bin/python -m pytest -m vla tests/vla tests/data $(LONG) $(ARGS)

test-openpi: install ## drive our policy server with openpi-client, in an environment of its own: it wants numpy < 2
	test -x .venv-openpi/bin/python || $(BIN)/python -m venv .venv-openpi
	.venv-openpi/bin/python -m pip install --quiet --disable-pip-version-check openpi-client==0.1.2 typing_extensions
	OPENPI_CLIENT_PYTHON=.venv-openpi/bin/python $(BIN)/python -m pytest -m openpi $(LONG) $(ARGS)

check: $(STAMP) ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: $(STAMP) ## build the documentation as a site, build/site; a warning fails
	$(BIN)/zensical build --clean --strict

bench: install ## measure this machine
	$(BIN)/deftly bench $(ARGS)

clean: ## remove what make and the tools made; runs stay
	rm -rf $(VENV) $(VLA) .venv-openpi build dist .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache MUJOCO_LOG.TXT
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "deftly needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no venv: apt-get install python3-venv, or make PYTHON=/path/to/another/python3" >&2; exit 1; }

$(STAMP): $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,scan,viewer,leap,keys,openpi,docs,dev]'
	@rm -f $(VENV)/.stamp-* && touch $@

# Videos need OpenGL without a display. Only root on a machine with apt installs it; without it, everything else works.
gl: $(STAMP)
	@if [ "$$(uname)" = Linux ] && ! $(HAS_EGL); then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends libegl1 libgl1-mesa-dri; } >/dev/null 2>&1; \
		fi; \
		$(HAS_EGL) || echo "hint: no videos without OpenGL: apt-get install libegl1 libgl1-mesa-dri"; \
	fi
