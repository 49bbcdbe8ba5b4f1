# make help lists the targets. Each works from a clean clone; the first one called sets up .venv.

PYTHON ?= python3
PROFILE ?= reference
VENV := .venv/bin/python
# As in gleak/study/chapters.py: one thread, and memory that is kept instead of given back at every step.
export OMP_NUM_THREADS ?= 1
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
# Where no bytecode is kept, each of many processes compiles torch and all else, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup reproduce book pdf slides examples test suite lint lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: .venv/.ready  ## set up .venv from requirements.lock

# Done again only when the lock or pyproject.toml changed.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gleak needs Python 3.11 or newer; name one with: make PYTHON=python3.x"; exit 1; }
	test -x $(VENV) || $(PYTHON) -m venv .venv
	$(VENV) -m uv --version >/dev/null 2>&1 || $(VENV) -m pip install --quiet uv
	$(VENV) -m uv pip sync --quiet --require-hashes requirements.lock
	$(VENV) -m uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Every number anew, none kept from an earlier run.
reproduce: export GLEAK_GRID = fresh

reproduce: setup  ## execute every chapter and build the book (PROFILE=smoke: a quick look)
	$(VENV) -m gleak execute --force --profile $(PROFILE)
	$(VENV) -m gleak book --profile $(PROFILE)

book: setup  ## build the book from the committed notebooks
	$(VENV) -m gleak book

pdf: setup  ## print the book into _build/gleak.pdf (needs Chromium); make book then links it
	$(VENV) -m gleak pdf

slides: setup  ## make an hour's slides from the chapters, into _build/slides.html
	$(VENV) -m gleak slides

examples: setup  ## make the reports that the book shows, from what their attacks found
	$(VENV) book/examples/make.py

test: setup  ## run all tests: package, chapters on other data and as committed, book
	$(MAKE) --no-print-directory --jobs 2 lint suite

suite: setup
	$(VENV) -m pytest -m "slow or not slow" --nbval-lax --numprocesses 2 \
		--dist loadfile --no-loadscope-reorder tests gleak notebooks

lint: setup
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

lock:  ## compile requirements.lock anew from pyproject.toml
	$(VENV) -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:  ## remove what was built, but not .venv
	rm -rf _build runs
