# make demo   set up .venv, then search and evaluate on the small built-in digits data
# make test   set up .venv, then run the tests in two processes
# make lint   set up .venv, then ruff's checks
# make docs   set up .venv, then the guides and the reference as pages, build/docs/index.html
# make clean  remove .venv and what builds and tests left behind (results in runs/ stay)
#
# PYTHON=/path/to/python3.12 chooses the interpreter, VENV=/path the environment's folder.

PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint docs clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): setup.cfg constraints.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: $(PYTHON) not found; install Python >= 3.10 or run: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python >= 3.10 is needed, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1);" \
	       "run: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create virtual environments; on Debian or Ubuntu run:" \
	       "apt-get install python3-venv" >&2; exit 1; }
	@rm -f "$@"
	"$(PYTHON)" -m venv "$(VENV)"
	@echo "Installing into $(VENV): some GB to download at first, so this takes several minutes ..."
	"$(VENV)/bin/python" -m pip install --no-input --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dev,docs,plots,export]'
	@touch "$@"

demo: $(STAMP)
	"$(VENV)/bin/nni-fairdarts" run --config examples/digits.yaml --name "demo-$$(date +%Y%m%d-%H%M%S)"

test: $(STAMP)
	"$(VENV)/bin/python" -m pytest -q -n 2

lint: $(STAMP)
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .

docs: $(STAMP)
	"$(VENV)/bin/python" -W ignore -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find nni_fairdarts tests -name __pycache__ -type d -prune -exec rm -rf {} +
