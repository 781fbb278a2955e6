# Skerry: every target starts from a bare checkout and skips what is there already.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# further arguments of pytest for `make test`, as in: make test PYTEST='-k swap'
PYTEST ?=
# which tests `make test` takes, by their marks, as in: make test MARKS=slow
MARKS ?= slow or not slow
# many tests wait more than they compute
WORKERS ?= $(shell expr `nproc` + 1)
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/usr/local/sbin
BENCHES = $(patsubst bench/%.py,%,$(filter-out bench/__init__.py,$(wildcard bench/*.py)))

# need PROGRAM,DEBIAN-PACKAGES: install by apt-get when PROGRAM is missing, or say what to do.
define need
	@command -v $(1) >/dev/null 2>&1 && exit 0; \
	if ! command -v apt-get >/dev/null 2>&1; then \
	  echo "$(1) is missing and there is no apt-get here: install $(1) by your package manager, then run make again" >&2; exit 1; fi; \
	sudo=; if [ "$$(id -u)" != 0 ]; then \
	  command -v sudo >/dev/null 2>&1 || { echo "$(1) is missing: run 'apt-get install $(2)' as root, then run make again" >&2; exit 1; }; sudo=sudo; fi; \
	echo "installing $(2)"; export DEBIAN_FRONTEND=noninteractive; \
	log=$$(mktemp); \
	{ $$sudo apt-get update && $$sudo apt-get install -y --no-install-recommends $(2); } >"$$log" 2>&1 \
	  || { tail -n 5 "$$log" >&2; echo "apt-get could not install $(2): is the network reachable? Install it by hand, then run make again" >&2; exit 1; }; \
	command -v $(1) >/dev/null 2>&1 || { echo "$(2) is installed but $(1) is not on the path" >&2; exit 1; }
endef

# half MARKS,ARGUMENTS,ARGUMENTS AGAIN: a test that failed is asked once more, by itself: it may wait
# for what a busy machine brings late.  What PYTEST narrows may be in one half only: pytest's exit
# code 5 says that nothing was selected.
define half
	@python -m pytest tests -m "$(1)" $(2) \
	  || { code=$$?; test $$code != 5 -o -z "$(PYTEST)" || exit 0; test $$code = 1 || exit $$code; \
	    echo "once more, by itself, what failed"; \
	    python -m pytest tests -m "$(1)" --last-failed --last-failed-no-failures none $(3); }
endef

# suite MARKS,ARGUMENTS: what may stand beside other tests, spread over workers, then the rest alone.
define suite
	$(call half,($(1)) and not alone,$(2) -n $(WORKERS) --dist loadfile,$(2))
	$(call half,($(1)) and alone,$(2),$(2))
endef

.PHONY: help demo test check format bench crash clean install broker browser load clock token tpm postgres chaos

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: install broker  ## the whole loop on real parts, about three minutes (KEEP=1 leaves it running)
	@python -m examples.demo

test: install broker browser clock token tpm postgres  ## all tests, the demo and the browser among them
	$(call suite,$(MARKS),$(PYTEST))

check: install broker clock token tpm postgres  ## format, lint, types, import contracts, fast tests
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports --no-logo
	$(call suite,not slow,-q)

format: install  ## rewrite the code in the house's format
	@ruff format .
	@ruff check --fix .

crash: install broker  ## a device killed, and its power cut, at every file operation of an update; then 200 kills under traffic
	@python -m tests.crash.matrix
	@CRASH_ROUNDS=200 python -m pytest tests/crash/test_rounds.py -q -s

chaos: install broker postgres  ## two of each process killed again and again during a rollout to 1,000 simulated devices
	@python -m tests.chaos

bench: install broker load  ## every benchmark; each prints a table and one JSON line
	@for name in $(BENCHES); do echo "== bench.$$name"; python -m bench.$$name; done

clean:  ## remove what make made
	rm -rf $(VENV) demo-run dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml edge_agent/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Skerry needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python cannot make virtual environments: apt-get install python3-venv, then run make again" >&2; exit 1; }
	@echo "installing Python packages into $(VENV) (first time: a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ./edge_agent -e '.[train,dev]'
	@touch $@

load:
	$(call need,wrk,wrk)

broker:
	$(call need,mosquitto,mosquitto)

clock:
	$(call need,faketime,faketime)

token:
	$(call need,softhsm2-util,softhsm2)

tpm:
	$(call need,swtpm,swtpm)
	$(call need,dbus-daemon,dbus-daemon)
	$(call need,tpm2-abrmd,tpm2-abrmd tpm2-openssl libtss2-tcti-tabrmd0 openssl)

postgres:
	$(call need,initdb /usr/lib/postgresql/*/bin/initdb,postgresql)

browser:
	$(call need,chromium,chromium)
