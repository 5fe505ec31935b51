# `make` alone lists the targets. PYTHON chooses the interpreter (3.11 or newer) that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: .venv/installed ## Make .venv, or bring it up to date; every target that needs it does so first

# Two stamps: a change of pyproject.toml alone does not look at every package again.
.venv/installed: .venv/locked pyproject.toml
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# Where PYTHONDONTWRITEBYTECODE is set, each of the tests' many processes would compile every module again.
	@$(BIN)/python -m compileall -q howl workers tests
	@touch $@

.venv/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HOWL needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	@echo "Installing the pinned packages into .venv (about a minute the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@touch $@

.PHONY: demo
demo: .venv/installed ## See the whole system do its job on this machine, checked, in under two minutes
	@$(BIN)/python -m demo

.PHONY: test
test: .venv/installed ## Run the tests; choose some with ARGS, as in make test ARGS="-k journey"
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: test-fast
test-fast: .venv/installed ## Run the tests that need no servers, in about three minutes
	@$(BIN)/python -m pytest -m "not servers" --numprocesses=2 $(ARGS)

.PHONY: check check-code check-arrows check-migrations check-workflows check-compose
check: check-code check-arrows check-migrations check-workflows check-compose ## Run every linter and static check

check-code: .venv/installed
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

check-arrows: .venv/installed
	@$(BIN)/lint-imports --no-logo

check-migrations: .venv/installed
	@$(BIN)/python .ci/check_migrations.py

check-workflows: .venv/installed
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/actionlint
	@$(BIN)/zizmor --offline --persona=pedantic --quiet .github/workflows

check-compose: .venv/installed
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: images
images: ## Show which tags of others' images have moved on from the digests they are pinned by (needs Docker)
	@grep -hoE '[a-z]+:[0-9][^ @]*@sha256:[0-9a-f]{64}' docker-compose.yml workers/Dockerfile | sort -u | \
	while IFS=@ read -r tag pinned; do \
		now=$$(docker buildx imagetools inspect "$$tag" --format '{{.Manifest.Digest}}') || exit 1; \
		if [ "$$now" = "$$pinned" ]; then echo "$$tag is as pinned"; else echo "$$tag has moved on: @$$now"; fi; \
	done

.PHONY: bench
bench: .venv/installed ## Measure tasks a second beside stock Celery; other measures with ARGS, as in ARGS=--tls
	@$(BIN)/python -m benchmarks.throughput $(ARGS)

.PHONY: faults
faults: .venv/installed ## Break workers, connections and servers under load, and count; in full with ARGS=--full
	@$(BIN)/python -m benchmarks.faults $(ARGS)

.PHONY: up
up: .venv/installed ## Run the embedded servers and the HOWL server in the foreground
	@$(BIN)/howl up

# No index is named, and no path of this machine: the locks must serve everyone.
COMPILE = $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --group build $(ARGS)

.PHONY: lock
lock: .venv/locked ## Write the three locks anew from pyproject.toml; newer versions with ARGS=--upgrade
	@$(COMPILE) --all-extras --output-file requirements.lock pyproject.toml
	@$(COMPILE) --extra server --constraints requirements.lock --output-file requirements-server.lock pyproject.toml
	@$(COMPILE) --extra worker --constraints requirements.lock --output-file requirements-worker.lock pyproject.toml
