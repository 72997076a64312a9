# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# the first interpreter that is new enough; choose another with `make demo PYTHON=/path/to/python3.12`
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$p"; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml setup.py constraints.txt
# pytest's marker expression; .ci/run widens it where Chromium is installed
TESTS ?= not slow and not browser and not deployment and not docker and not drill and not programs
# processes that share the tests; 0 runs them one by one in pytest's own
WORKERS ?= 2
# of `make mutation`: when to stop, and which sample of the changes to try; ARGS="pat triplet" picks files
MINUTES ?= 20
SEED ?= 0
ARGS ?=
BUILD ?=

.PHONY: help demo test test-programs test-slow test-browser test-deployment test-docker test-drill image compose mutation lint format typecheck \
	readme site reproduce bench doctor wheel hooks clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="…" is passed on, e.g. make test ARGS="-k fedlgd"; PYTHON=… chooses the interpreter of a new .venv'

demo: $(VENV)/.installed ## set up, then run FedLGD on the built-in digits (about 6 minutes on 2 cores)
	$(BIN)/fedlab run fedlgd $(ARGS)

test: $(VENV)/.installed-dev ## set up with the development tools, then run the tests
	$(BIN)/python -m pytest -m '$(TESTS)' -n $(WORKERS) --dist loadgroup $(ARGS)

test-programs: $(VENV)/.installed-dev ## run commands, workers and what the README and docs/ say in processes of their own, as a user would
	$(BIN)/python -m pytest -m 'programs and not slow' -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: $(VENV)/.installed-dev ## run the long experiments
	$(BIN)/python -m pytest -m slow --timeout 7200 $(ARGS)

test-browser: $(VENV)/.installed-dev ## look at a report in headless Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

test-deployment: $(VENV)/.installed-dev ## run on Flower's SuperLink and SuperNodes on this machine, minutes of polling
	$(BIN)/python -m pytest -m deployment $(ARGS)

test-docker: $(VENV)/.installed-dev ## build the image and run federations and a Ray cluster in containers (needs Docker)
	$(BIN)/python -m pytest -m docker $(ARGS)

test-drill: $(VENV)/.installed-dev ## kill, damage and lie to runs on purpose, up to 10 minutes; docs/reliability.md says what is promised
	$(BIN)/python -m pytest -m drill -n $(WORKERS) --dist loadgroup $(ARGS)

# BUILD="--build-arg …" passes arguments to the Dockerfile
image: ## build the image fedlab:VERSION and call it fedlab:latest too
	version=$$(sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml); \
		docker build -f docker/Dockerfile --build-arg "VERSION=$$version" -t "fedlab:$$version" -t fedlab:latest $(BUILD) .

compose: $(VENV)/.installed ## write docker/compose*.yml anew, after a change of fedlab/deployment/compose.py
	$(BIN)/python -m fedlab.deployment.compose docker

mutation: $(VENV)/.installed-dev ## change formulas one at a time for MINUTES=20 and list the changes that no test notices
	$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(PIP) install --quiet -c constraints.txt -e '.[mutation]'
	nice $(BIN)/python tests/mutation --minutes $(MINUTES) --seed $(SEED) $(ARGS)

lint: $(VENV)/.installed-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## mend style and formatting where that can be done by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# a static checker cannot follow clients/ → fedlab.clients in place, so it reads what a user would install
typecheck: $(VENV)/.installed-dev ## check the types of the built wheel
	rm -rf .typing
	$(BIN)/python -m build --no-isolation --outdir .typing/dist . >/dev/null
	$(PIP) install --quiet --no-deps --no-index --target .typing/site .typing/dist/*.whl
	cd .typing/site && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p fedlab

readme: $(VENV)/.installed-dev ## run the README's commands and the notebooks, and write their outputs into them anew
	$(BIN)/python -m pytest tests/docs/test_readme.py tests/docs/test_readme_facts.py tests/docs/test_notebooks.py \
		-k 'text or tables or notebook_runs' -n 0 --update-readme $(ARGS)

site: $(VENV)/.installed-dev ## build the documentation into site/, and fail on warnings and on links that lead nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce: $(VENV)/.installed ## run FedLGD's acceptance experiment over its seeds and compare with what is required
	$(BIN)/fedlab reproduce fedlgd $(ARGS)

# pfl-research brings dependencies of its own, so it gets an environment of its own; without it its column stays empty
bench: $(VENV)/.installed-dev ## measure FedLab beside its alternatives, write benchmarks/RESULTS.md (40 minutes on 2 idle cores)
	@test -x .venv-pfl/bin/python || { '$(PYTHON)' -m venv .venv-pfl && \
		.venv-pfl/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt pfl torch; } || true
	$(BIN)/python -m benchmarks --out benchmarks $(ARGS) \
		$$(.venv-pfl/bin/python -c 'import pfl' 2>/dev/null && echo --pfl-python .venv-pfl/bin/python)

doctor: $(VENV)/.installed ## say what is wrong with this machine and how to mend it
	$(BIN)/fedlab doctor

wheel: $(VENV)/.installed-dev ## build dist/*.whl
	$(BIN)/python -m build --no-isolation --outdir dist .

hooks: $(VENV)/.installed-dev ## run the checks of .pre-commit-config.yaml before every commit
	$(BIN)/pre-commit install

clean: ## remove what was built, keep .venv and runs/
	rm -rf build dist site .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

$(BIN)/python:
	@if [ -z '$(PYTHON)' ] || ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo 'FedLab needs Python 3.11 or newer; found: $(or $(PYTHON),none). Install one, or: make PYTHON=/path/to/python3.12 …' >&2; \
		exit 1; fi
	@'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'No virtual environment could be made. Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo 'Installing FedLab into $(VENV): several minutes the first time …'
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	@echo 'Installing FedLab and its development tools into $(VENV): several minutes the first time …'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed
