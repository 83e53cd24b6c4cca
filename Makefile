# `make demo` and `make test` need Python 3.11+, git and make; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
QUESTION ?= If a rectangle has length 12 and width 7, what is its area?

.PHONY: demo chat test test-all fuzz fuzz-checkpoints docs lint types check clean

demo: .venv/installed
	$(BIN)/orthrus-mlx generate --no-stdin --mode parallel "$(QUESTION)"

chat: .venv/installed
	$(BIN)/orthrus-mlx chat

test: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Everything: all 48 golden prompts, runs of 6,000 tokens, more examples, the recipe of the demo.
test-all: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist worksteal --full

# The property tests again, with examples that no run has seen.
fuzz: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile fuzz tests/lossless tests/errors tests/schedule tests/api

# The help of every command into docs/cli.md, the reports in results/ into docs/results.md.
docs: .venv/installed
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_results.py

# 1,200 damaged copies of the demo: each loads or is refused in plain words, within time and memory.
fuzz-checkpoints: .venv/installed
	$(BIN)/python benchmarks/fuzz_checkpoints.py

lint: .venv/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of convert/ and cli/ into the package, so it reads a built copy.
types: .venv/linted
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p orthrus_mlx

check: test lint types

# Before .venv is made, since it would keep a Python that cannot do: macOS brings 3.9.
OLD := Python %s is too old, 3.11 or newer is needed. Name one: make demo PYTHON=python3.12
INTEL := Python is built for Intel, and MLX for Apple silicon only: take one for arm64
CHECK := import platform, sys; old = sys.version_info < (3, 11); \
	intel = (sys.platform, platform.machine()) == ("darwin", "x86_64"); \
	sys.exit("$(OLD)" % platform.python_version() if old else "$(INTEL)" if intel else 0)

.venv/bin/python:
	@$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@

.venv/linted: .venv/installed
	$(BIN)/python -m pip install --quiet -e ".[lint]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
