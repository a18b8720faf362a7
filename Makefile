# Each target makes or takes the environment in .venv; see CONTRIBUTING.md.
ENV := . scripts/venv.sh &&
SHELL := bash

.PHONY: test quick lint docs bench

test:  ## all tests
	bash scripts/test.sh

quick:  ## the tests that need no real model
	bash scripts/test.sh --ignore tests/docs --ignore tests/locate/test_default_model.py

lint:  ## style and types
	$(ENV) ruff check . && ruff format --check . && mypy

docs:  ## what is made from something else: the notebook and the tables of numbers
	$(ENV) python scripts/notebook.py && python -m benchmarks table

bench:  ## what is measured, by name and question
	$(ENV) python -m benchmarks run --help
