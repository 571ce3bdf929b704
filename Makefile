# `make build` and `make test` do everything on a fresh machine with python3 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TORCH  := torch==2.13.0
# The environment's commands first, so that `tapeout` and `dvc` find each other.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup build report lint test test-all clean

setup: $(READY)

build: setup
	@tapeout build $(ARGS)

report: setup
	@tapeout report

lint: setup
	ruff format --check .
	ruff check .
	mypy

# Three processes on two cores: tests that wait leave theirs to others.
test: lint
	@sh tests/browser.sh
	@sh tests/node.sh
	python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: lint
	@sh tests/browser.sh
	@sh tests/node.sh
	python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

clean:
	rm -rf $(VENV)

# torch comes by pip, which may be set up for a local or a CPU build; the rest from the lock, with hashes.
$(READY): requirements.lock pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) $$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)
	$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
