# Every target sets up what it needs in .venv; `make PYTHON=python3.12 ...` picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart smoke smoke-all test check format bench faults clean

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -e '.[test,dev]'
	touch $@

setup: $(VENV)/.test

quickstart: $(VENV)/.run
	$(BIN)/python harness.py run benchmarks/quickstart.yaml --report

smoke: $(VENV)/.run
	$(BIN)/python harness.py run benchmarks/smoke.yaml --report

# Every benchmark made small, a minute or two each, in results of their own. `make smoke-all SPECS=benchmarks/table1*.yaml` runs some.
SPECS ?= benchmarks/*.yaml
smoke-all: $(VENV)/.test
	@for spec in $(SPECS); do echo "== $$spec" && $(BIN)/python harness.py run $$spec --smoke || exit 1; done

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -q

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.run
	$(BIN)/python bench/run.py

# The fault catalogue: 1,000 kills of cells and 400 of whole grids at random moments, every system call of a write interrupted,
# 20,000 flips, cuts and zero-fills, every guard taken out in turn; then the catalogue as a table. 47 minutes on two cores (measured);
# the kills say how far they are. LTBENCH_KILLS and LTBENCH_GRID_KILLS (200, twice) set their numbers.
faults: $(VENV)/.test
	LTBENCH_KILLS=$${LTBENCH_KILLS:-1000} LTBENCH_FAULTS=long $(BIN)/python -m pytest -n 2 --dist worksteal -v -m faults
	$(BIN)/python -m tests.faults

clean:
	rm -rf $(VENV) reports/build .pytest_cache .ruff_cache
