# Linux x86-64 with Python 3.11; everything goes into .venv, nothing else is touched.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install demo test test-faults test-cluster lint lock bench-%

install: $(INSTALLED)

# --no-deps: the lock is complete, and what vLLM's CPU build names but does not need for text must stay out.
# compileall: with all cores, where pip would take one. Left to the imports, it would be done anew in every process wherever
# PYTHONDONTWRITEBYTECODE is set, half a minute for each engine. What it cannot compile is written for another Python.
$(INSTALLED): requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $(INSTALLED)

demo: install
	$(BIN)/aloftrag run jobs/demo.yaml --language en

test: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not faults and not cluster"

test-faults: install
	$(BIN)/pytest -m faults

test-cluster: install
	$(BIN)/pytest -m cluster

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench-%: install
	$(BIN)/python -m tests.benchmarks.$(subst -,_,$*)

# What pyproject.toml asks for, resolved anew with pip and written down without what must stay out.
lock: install
	$(BIN)/python requirements/lock.py
