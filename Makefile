# virtintrospect. `make help` lists what there is.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough and really runs (pyenv's shims may not).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?=
BENCH ?=

.PHONY: help venv deps check kernels format test test-unit test-xen test-host test-fleet fuzz demo demo-fleet demo-remove browser bench man rules api support support-xen clean clean-lab

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

venv: $(STAMP) ## .venv with virt-introspect (editable) and the tools for development

$(STAMP): pyproject.toml | deps
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --editable . --group dev
	@touch $@

deps: ## Debian packages that are missing (as root; else says which)
	@tests/guests/lab/deps.sh "$(PYTHON)"

check: $(STAMP) ## format, lint, types, layers
	@$(BIN)/ruff format --check . || { echo "make check: run 'make format'" >&2; exit 1; }
	@$(BIN)/ruff check . || { echo "make check: fix these ('make format' repairs some)" >&2; exit 1; }
	@$(BIN)/mypy || { echo "make check: fix the types above" >&2; exit 1; }
	@$(BIN)/lint-imports --no-cache || { echo "make check: an import breaks the layers of pyproject.toml" >&2; exit 1; }

format: $(STAMP) ## rewrite the sources as ruff wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

kernels: $(STAMP) ## fetch the Debian kernels that the tests boot
	@$(BIN)/python -m tests.guests.lab.kernels
	@$(BIN)/python -m tests.xen.lab.packages

test: check kernels browser ## everything: checks, unit tests, real guests (TESTS=… for some of them)
	$(BIN)/python -m tests $(TESTS)

test-unit: $(STAMP) ## unit tests only
	$(BIN)/python -m pytest -q tests/unit

test-xen: kernels ## the Xen driver in an emulated dom0: everything, kernels 6.1 and 6.12
	VIRTINTROSPECT_XEN_WHOLE=1 $(BIN)/python -m pytest -s tests/xen

test-host: kernels ## hints on an emulated host with KVM, two NUMA nodes and KSM (HOST='-k steal': some)
	VIRTINTROSPECT_HOST_TESTS="$(HOST)" $(BIN)/python -m pytest -s tests/host

test-fleet: kernels ## the Ansible collection: everything, all of ansible-test sanity too
	VIRTINTROSPECT_FLEET_WHOLE=1 $(BIN)/python -m pytest tests/ansible tests/guests/test_fleet.py

fuzz: kernels ## bad input for all parsers, then for a real guest's memory (FUZZ_SECONDS=600 each)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --group fuzz || \
		echo "make fuzz: no atheris for this Python: bad input is made without coverage" >&2
	@[ -n "$(FUZZ_ONLY)" ] || $(BIN)/python -m tests.fuzz.parsers
	@[ -n "$(FUZZ_TARGET)" ] || $(BIN)/python -m tests.fuzz

demo: $(STAMP) ## boot a small guest and look into it (KEEP=1 keeps the guest)
	@KEEP="$(KEEP)" $(BIN)/python -m tests.guests.lab.demo

demo-fleet: $(STAMP) ## three hosts over ssh, guests, one audit: leaves fleet-report/ (KEEP=1 keeps the hosts)
	@KEEP="$(KEEP)" $(BIN)/python -m tests.ansible.lab.demo

browser: ## Chromium, in which the tests open the fleet's report
	@tests/guests/lab/deps.sh "$(PYTHON)" chromium

demo-remove: $(STAMP) ## remove the guest that `make demo KEEP=1` left
	@$(BIN)/python -m tests.guests.lab.demo remove

bench: $(STAMP) ## the figures of docs/performance.md and others (BENCH=small: some of them)
	$(BIN)/python -m benchmarks $(BENCH)

man: $(STAMP) ## docs/virt-introspect.1 anew, from what --help says
	@$(BIN)/python -m virtintrospect.cli.manpage docs/virt-introspect.1

rules: $(STAMP) ## docs/rules.md anew, from the rules of `check`
	@$(BIN)/python -m virtintrospect.cli.rulespage docs/rules.md

api: $(STAMP) ## the library's reference, out of its docstrings, as HTML in build/api
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs/api build/api
	@echo "build/api/index.html"

support: kernels ## docs/support.md anew: what works where (SUPPORT='-k raw', SUPPORT_ONLY=dump: some of it)
	SUPPORT_RECORD=1 $(BIN)/python -m pytest -q tests/guests/test_support.py $(SUPPORT)

support-xen: kernels ## the columns of docs/support.md for Xen guests, made in an emulated dom0
	SUPPORT_RECORD=1 VIRTINTROSPECT_XEN_TESTS=tests/xen/inside/test_support.py $(BIN)/python -m pytest -s tests/xen

clean-lab: ## the lab's kernels and packages
	rm -rf "$${VIRTINTROSPECT_LAB_CACHE:-/var/cache/virtintrospect-lab}"

clean: ## the virtual environment and caches of tools
	rm -rf $(VENV) fleet-report .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
