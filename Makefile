# Two commands: `make study` trains and reports, `make test` runs the tests. Both set up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY := studies/quick

# Read when torch is imported: idle threads sleep instead of spinning on a shared machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: study test check format docs bench clean

study: $(VENV)/installed
	$(BIN)/python -m models.train quick
	$(BIN)/python -m analyses $(STUDY)  # what is up to date stays

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-docs
	@rm -rf docs/reference/api  # a page for each module there is, and no other
	$(BIN)/sphinx-build -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

BENCHMARKS := training step_profile watching side_by_side store_rates resampling similarity

bench: $(VENV)/installed-dev  # those of minutes; all run, whether one misses its aim or not
	@missed=0; for name in $(BENCHMARKS); do \
		$(BIN)/python tests/benchmarks/$$name.py || missed=1; \
	done; exit $$missed

clean:
	rm -rf $(VENV) build docs/_build docs/reference/api *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[books]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[books,dev]"
	@touch $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[books,docs]"
	@touch $@
