# `make demo`, `test` and `docs` do all their own set-up, in .venv. PYTHON names the interpreter to make it from.
PYTHON ?= python3
VENV := .venv

.PHONY: help setup test lint demo bench evidence docs clean lock

help:
	@echo 'make setup             the environment in $(VENV), with everything installed'
	@echo 'make test              linters and tests'
	@echo 'make demo              map, bag, ROS 2 nodes and results, on a street that it makes itself'
	@echo 'make demo DRIVE=dir    the same on a KITTI raw drive'
	@echo 'make bench             how fast localizing, visibility, voxels, maps, ROS 2 and synthetic drives are here'
	@echo 'make evidence          every table of the README and the docs that it makes anew, in hours; with EP2PLOC_DATA set'
	@echo 'make evidence STEPS=   some of them: drive_0001 street kitchen baselines_0009 baselines_0001 localizer ros ...'
	@echo 'make docs              the documentation as pages to read, in out/docs'
	@echo 'make lint, clean, lock checks; remove what was made; pin the newest dependencies that fit'

setup: $(VENV)/.package

# The pinned dependencies; torch decides by itself whether it needs CUDA's packages.
$(VENV)/.dependencies: requirements.in requirements.lock tools/build_tf2_msgs.py
	@$(PYTHON) tools/check_system.py
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): a minute or two.'
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c requirements.lock -r requirements.in
	@$(VENV)/bin/python tools/build_tf2_msgs.py
	@touch $@

# The package itself, editable: everything is used from where it lies.
$(VENV)/.package: $(VENV)/.dependencies setup.py setup.cfg pyproject.toml
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --no-build-isolation -c requirements.lock --editable .
	@$(VENV)/bin/pip check
	@touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/python -m pytest

demo: setup
	$(VENV)/bin/ep2ploc demo $(if $(DRIVE),--drive "$(DRIVE)")

bench: setup
	@for benchmark in benchmarks/*.py; do $(VENV)/bin/python $$benchmark || exit 1; done

evidence: setup
	$(VENV)/bin/python tools/evidence.py $(STEPS)

# What the pages are built with; nothing else needs it.
$(VENV)/.docs: $(VENV)/.package requirements.docs.in
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c requirements.lock -r requirements.docs.in
	@touch $@

# The variable silences the theme's notice of its own future.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo 'out/docs/index.html: written'

clean:
	rm -rf $(VENV) out build install log *.egg-info .mypy_cache .pytest_cache .ruff_cache

lock: setup
	$(VENV)/bin/pip install --quiet uv
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-annotate \
		setup.py requirements.in requirements.docs.in --output-file requirements.lock
