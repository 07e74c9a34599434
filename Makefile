# normlab: `make help` lists the targets
PYTHON ?= python3
VENV := .venv
NORMLAB := $(VENV)/bin/normlab

# Of the reproductions: scale of the protocol, number of seeds (empty: as the scale says), runs side by side (0: as many as cores or GPUs allow)
SCALE ?= scenes
SEEDS ?=
JOBS ?= 0

.PHONY: help setup train test test-long check reproduce-table2 reproduce-digits scenes-pilots readme docs clean
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

setup: $(VENV)/installed  ## make the environment in .venv (versions pinned in constraints.txt)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "normlab needs Python 3.11 or newer; PYTHON=python3.12 make setup picks another")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup  ## train the default: norm=sn batch=8x2 on the embedded digits
	$(NORMLAB) train norm=sn batch=8x2

test: setup  ## run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 --dist loadfile

test-long: setup  ## run the tests that are too long for every day
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m long

check: setup  ## lint and type check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

reproduce-table2: setup  ## Table 2 of the SN papers: SCALE=scenes|digits|cifar10|imagenet SEEDS=N JOBS=0
	$(NORMLAB) reproduce table2 scale=$(SCALE) $(if $(SEEDS),seeds=$(SEEDS)) jobs=$(JOBS)

reproduce-digits: SEEDS = 1
reproduce-digits: setup  ## every table at digits scale, going on where it stopped: SEEDS=1 JOBS=0
	$(NORMLAB) reproduce all scale=digits seeds=$(SEEDS) jobs=$(JOBS)

scenes-pilots: setup  ## the pilots that scale=scenes was chosen by (docs/protocol.md)
	OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/scenes_pilots.py

readme: setup  ## train what README shows, and put its results there
	$(NORMLAB) train -m norm=bn,gn,sn,hn batch=8x2 seed=0,1,2 tracker=none
	$(VENV)/bin/python scripts/readme_results.py

docs: setup  ## the pages of docs/ as a site, in build/docs
	$(VENV)/bin/python scripts/settings_page.py
	$(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo build/docs/index.html

clean:  ## remove the environment and caches (runs stay)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
