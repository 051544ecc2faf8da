# pyrep: `make run` shows it at work, `make test` proves it; `make help` lists the rest.

VENV ?= .venv
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)

# the first interpreter that is new enough; an empty answer is explained by the set-up
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	  command -v $$p >/dev/null 2>&1 || continue; \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)

CORE := setup.py $(wildcard src/*.pyx src/*.pxi src/*.h src/pyrep/*.pxd)
DEPENDENCIES := $(VENV)/.dependencies
SWIFT := .venv-swift
AZURITE := .azurite
BUILT := $(VENV)/.built

# `make run`: DIR = a directory of live databases (else sample tenants with writers are made),
# REPLICA = where the replica goes (a path or URL), FOR = stop after so many seconds
DIR ?=
REPLICA ?=
FOR ?=
export DIR REPLICA FOR

.DEFAULT_GOAL := help
.PHONY: help run run-s3 test servers lint bench bench-scale bench-all crash crash-steps fuzz soak build clean

help: ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1: \2/p' Makefile

run: $(BUILT) ## replicate sample tenants (or DIR=...) and restore every one; REPLICA=... FOR=seconds
	@set --; test -z "$$DIR" || set -- "$$@" --dir "$$DIR"; \
	test -z "$$REPLICA" || set -- "$$@" --replica "$$REPLICA"; \
	test -z "$$FOR" || set -- "$$@" --for "$$FOR"; \
	PYTHONPATH=tests exec $(PY) benchmarks/demo.py "$$@"

run-s3: $(BUILT) ## the same to a local S3 server started for it, 8 seconds (FOR=...), and show the bucket
	@set -- --s3; test -z "$$DIR" || set -- "$$@" --dir "$$DIR"; \
	test -z "$$FOR" || set -- "$$@" --for "$$FOR"; \
	PYTHONPATH=tests exec $(PY) benchmarks/demo.py "$$@"

test: lint ## lint, types and the short form of every test (PYREP_ALL=1: nothing may be missing)
	$(PY) tests/tools/run_tests.py

servers: $(SWIFT)/.installed $(AZURITE)/.installed ## install OpenStack Swift and Azurite, servers of the storage tests

lint: $(BUILT) ## style and types
	ruff check .
	ruff format --check .
	mypy
	cython-lint src

bench: $(BUILT) ## measure the core and latency, beside liblz4 and Litestream; ONLY=core,snapshot,tools
	$(PY) benchmarks/run_all.py --only $${ONLY:-core,snapshot,tools}

bench-scale: $(BUILT) ## measure up to 50,000 tenants, 40 minutes; TENANTS=100,300 SECONDS=10 ROWS=idle,busy is quicker
	PYTHONPATH=tests:benchmarks $(PY) benchmarks/scale/bench_scale.py $${TENANTS:+--tenants $$TENANTS} \
	  $${SECONDS:+--seconds $$SECONDS} $${ROWS:+--rows $$ROWS}

bench-all: $(BUILT) ## both: every number to reach with its verdict, written to docs/benchmarks.md (OUTPUT=docs)
	$(PY) benchmarks/run_all.py --output $${OUTPUT:-docs}

crash: $(BUILT) ## kill daemons at POINTS=2000 random points of SEED=1, 2 side by side (WORKERS=2), an hour; ROUND=n again
	$(PY) tests/tools/crash.py $${POINTS:-2000} --seed $${SEED:-1} --workers $${WORKERS:-2} $${ROUND:+--round $$ROUND}

crash-steps: $(BUILT) ## kill the engine at each named step, many times
	PYREP_SCALE=$${PYREP_SCALE:-20} $(PY) -m pytest -m crash

# A build with sanitizers of its own: the package is copied, the native modules are built into it.
SANITIZED := build/sanitized
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

$(SANITIZED)/.built: $(BUILT) $(CORE) $(wildcard src/pyrep/*.py)
	@echo "pyrep: building with sanitizers"
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/pyrep && cp -r src/pyrep/. $(SANITIZED)/pyrep && rm -f $(SANITIZED)/pyrep/*.so
	@CFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" $(PY) setup.py --quiet build_ext --force \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)/temp
	@touch $@

fuzz: $(BUILT) $(SANITIZED)/.built ## feed hostile bytes: INPUTS=1000000 of SEED=1, 1 in 10 with sanitizers, 1 in 50 of other kinds
	PYTHONPATH=$(SANITIZED) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  $(PY) tests/tools/fuzz.py $$(( $${INPUTS:-1000000} / 10 )) --seed $${SEED:-1} --slow
	$(PY) tests/tools/fuzz.py $${INPUTS:-1000000} --seed $${SEED:-1}
	$(PY) tests/tools/fuzz_inputs.py $$(( $${INPUTS:-1000000} / 50 )) --seed $${SEED:-1}
	PYREP_SCALE=$${PYREP_SCALE:-50} $(PY) -m pytest -m fuzz

soak: $(BUILT) ## hours: the long form of the property, crash, fuzz and field tests
	PYREP_SOAK=1 PYREP_SCALE=$${PYREP_SCALE:-50} $(PY) -m pytest --timeout=86400 -m 'soak or crash or fuzz or property'

build: $(BUILT) ## source distribution, and the wheel built from it
	rm -rf dist
	$(PY) -m build --quiet

clean: ## remove what a build or a test run made, and the virtual environment
	rm -rf build dist src/*.egg-info src/*.c src/*.html src/pyrep/*.so .mypy_cache .ruff_cache \
	  .pytest_cache .hypothesis $(VENV) $(SWIFT) $(AZURITE)
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything that is missing is named in one line, with the command that installs it on Debian.
$(PY):
	@if [ -z "$(PYTHON)" ]; then \
	  echo "pyrep: no Python 3.11 or newer found; apt-get install python3 python3-venv python3-dev (or set PYTHON=)" >&2; exit 1; fi
	@missing=; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	  || missing="$$missing python3-dev"; \
	command -v gcc >/dev/null 2>&1 || command -v cc >/dev/null 2>&1 || missing="$$missing gcc"; \
	$(PYTHON) -c 'import ctypes; ctypes.CDLL("liblz4.so.1")' 2>/dev/null || missing="$$missing liblz4-1"; \
	if [ -n "$$missing" ]; then \
	  echo "pyrep: missing:$$missing; on Debian: apt-get install$$missing" >&2; exit 1; fi
	@echo "pyrep: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

# pip before 25.1 knows no dependency groups
$(DEPENDENCIES): pyproject.toml | $(PY)
	@echo "pyrep: installing what the build and the tests need"
	@$(PY) -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(PY) -m pip install --quiet --disable-pip-version-check --group build --group test --group lint
	@touch $@

# an environment of its own: its requirements are not ours
$(SWIFT)/.installed: | $(PY)
	@echo "pyrep: installing OpenStack Swift"
	@$(PY) -m venv --clear $(SWIFT)
	@$(SWIFT)/bin/python -m pip install --quiet --disable-pip-version-check 'swift>=2.38'
	@touch $@

$(AZURITE)/.installed:
	@echo "pyrep: installing Azurite"
	@npm install --silent --no-fund --no-audit --prefix $(AZURITE) 'azurite@^3.35' >/dev/null
	@touch $@

$(BUILT): $(DEPENDENCIES) $(CORE)
	@echo "pyrep: building"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[all]'
	@touch $@
