# make         set up and build everything, the paper included (latex/report.pdf)
# make help    the other targets, and the variables:
#
# PYTHON=python3.12   another interpreter (3.11 or newer); an environment of any other is made anew
# CORES=4             jobs at a time; measurements still run one by one
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu   the CPU build of torch, a tenth of the download
# WORKERS=4           tests at a time

PYTHON ?=
CORES ?= 1
WORKERS ?= 2
VENV := .venv
EXTRAS := fms,workflow,cluster,track,docs,dev
LOCKED_TORCH := 2.13.0

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := paper
.PHONY: paper claims test test-fast lint setup tex readme docs lock clean help

# What set-up installed, found without activating it.
WITHIN := env PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# Each worker takes a whole file at a time, in the order of conftest.py.
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

paper: setup tex ## build everything; without TeX, everything but the PDF
	if workflow/setup/tex.sh check; then target=all; else target=all_but_pdf; fi; \
	$(WITHIN) snakemake --cores $(CORES) $$target

test: setup tex lint ## lint and run every test
	$(WITHIN) pytest $(PARALLEL) -m "not gpu and not multigpu"
	if nvidia-smi -L > /dev/null 2>&1; then $(WITHIN) pytest -m "gpu or multigpu"; fi

test-fast: setup ## run the tests that are not slow and start no ranks and no Snakemake
	$(WITHIN) pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow and not ranks and not workflow and not gpu and not multigpu"

lint: setup ## check style, types, and which module may import which
	$(WITHIN) ruff check .
	$(WITHIN) ruff format --check .
	$(WITHIN) lint-imports
	$(WITHIN) mypy
	$(WITHIN) snakefmt --check Snakefile workflow/rules
	$(WITHIN) snakemake --lint

# Also an environment that is complete is looked at again where another interpreter is asked for than it has.
ifneq ($(PYTHON),)
ifneq ($(shell PYTHON='$(PYTHON)' workflow/setup/venv.sh has-python $(VENV) && echo yes),yes)
.PHONY: $(VENV)/.installed
endif
endif

setup: $(VENV)/.installed ## make the virtual environment with the locked versions

# The stamp lies in the environment and is the last thing made, so neither outlives the other.
$(VENV)/.installed: pyproject.toml constraints.txt workflow/setup/venv.sh
	PYTHON='$(PYTHON)' workflow/setup/venv.sh install $(VENV) '$(EXTRAS)'
	touch $@

tex: ## install TeX where it is missing and allowed
	workflow/setup/tex.sh install

claims: setup ## judge every claim of the paper by the recorded data
	$(WITHIN) snakemake --cores $(CORES) --quiet all -- latex/generated/claims.tex || { cat logs/claims.log; exit 1; }
	cat logs/claims.log

readme: setup ## make README's tables, docs/claims.md and docs/results.svg anew from the record
	for record in data/h200x2*/provenance.json; do \
	  $(WITHIN) heteroring aggregate --platform-dir "$${record%/*}" > /dev/null; \
	done
	$(WITHIN) python workflow/scripts/check_claims.py data/h200x2 data/published data/h200x2_short \
	  data/predictions workflow/claims.yaml docs/claims.md
	$(WITHIN) python workflow/readme.py

docs: setup ## make pages of docs/ and of the API: docs/_build/index.html
	$(WITHIN) sphinx-build -W --keep-going -q docs docs/_build

lock: setup ## resolve constraints.txt anew, keeping every pin that still fits
	$(WITHIN) pip install --quiet 'uv>=0.8'
	$(WITHIN) workflow/setup/lock.sh 'torch==$(LOCKED_TORCH)'

clean: ## delete figures, tables and the paper; measurements stay
	rm -rf {.,runs/*}/{figures,logs,latex/images,latex/generated,data/*/derived}
	rm -f {.,runs/*}/latex/report.{aux,bbl,blg,fdb_latexmk,fls,log,out,pdf}

help: ## list targets and variables
	@sed -nE 's/^([a-z-]+):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo; echo 'Variables, as in "make CORES=4":'
	@sed -nE 's/^# ([A-Z_]+=)/  \1/p' $(MAKEFILE_LIST)
