# TwinBed. `make scenario` and `make test` set up everything they need and may be repeated.
SHELL := /bin/bash
TWIN := .venv/bin/twin
PYTEST := .venv/bin/python -m pytest
# Comparisons that take hours, or need a model or data, are run on their own: docs/benchmarks.md.
ON_THEIR_OWN := $(addprefix benchmarks/,iab.py phaul.py prior_search.py slice_model.py microopt.py microopt_emulation.py)
BENCHMARKS := $(filter-out $(ON_THEIR_OWN) benchmarks/deadline_task.py,$(wildcard benchmarks/*.py))

.PHONY: help setup setup-guests setup-test images scenario test check format docs benchmarks gc

help:
	@echo "make scenario    set up, run the quickstart with and without slicing, write runs/<id>/report.html"
	@echo "make test        set up, run every test"
	@echo "make setup       packages, .venv, Docker and Open vSwitch only"
	@echo "make images      build the base container image and the aarch64 guest image"
	@echo "make check       ruff, mypy, import-linter, generated reference up to date"
	@echo "make format      let ruff format and fix"
	@echo "make docs        generate docs/reference and the JSON Schema from the code"
	@echo "make benchmarks  print the figures of the benchmarks against their references"
	@echo "make gc          remove what dead runs left on this host"

setup:
	@tools/setup

setup-test:
	@tools/setup test

setup-guests:
	@tools/setup guests

images: setup-guests
	@.venv/bin/python -c "from twin.emulation.images import ensure_base_image; print(ensure_base_image(print))"
	@.venv/bin/python qemu-images/build.py

scenario: setup
	@$(TWIN) run quickstart --fidelity emulation --fallback flow --slicing both

# What runs on containers has the host to itself; the rest runs on all processors first.
test: setup-test
	@status=0; \
	$(PYTEST) -m 'not emulation' --numprocesses auto --maxprocesses 4 --dist loadfile || status=1; \
	$(PYTEST) -m emulation || status=1; \
	exit $$status

check: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python tools/generate_reference.py --check

format: setup-test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: setup
	.venv/bin/python tools/generate_reference.py

benchmarks: setup-test
	@for script in $(BENCHMARKS); do echo "== $$script"; .venv/bin/python "$$script" || exit 1; done

gc: setup
	@$(TWIN) gc
