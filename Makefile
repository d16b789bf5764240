# Everything a newcomer needs: each target makes .venv and installs what it needs, once.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check bench powercut clean lock format

demo: $(STAMP)
	$(RUN)/holdfast demo

# A few minutes: two processes, since most tests wait for brokers and disks. What takes long, and
# what needs root, is a target of its own.
test: $(STAMP)
	$(RUN)/pytest -q -m "not slow and not powercut" --numprocesses 2 --dist worksteal

test-slow: $(STAMP)
	$(RUN)/pytest -q -m "slow and not powercut"

check: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

bench: $(STAMP)
	$(RUN)/python -m tests.bench decide
	$(RUN)/python -m tests.bench start
	$(RUN)/python -m tests.bench spool
	$(RUN)/python -m tests.bench backlog
	$(RUN)/python -m tests.bench drain
	$(RUN)/python -m tests.bench priority

# Cuts the power under Holdfast and its peers; needs root, loop devices, xfsprogs and mosquitto.
ROUNDS ?= 20
powercut: $(STAMP)
	$(RUN)/python -m tests.bench powercut --rounds $(ROUNDS)

format: $(STAMP)
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

# Only a change of what is needed installs again; afterwards no network is asked.
$(STAMP): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "holdfast needs Python 3.11 or newer: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 2; }
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $(STAMP)

# Renews the lock file after pyproject.toml changed; needs uv on the PATH.
lock:
	uv pip compile pyproject.toml --extra headquarters --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
