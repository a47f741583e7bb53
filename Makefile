# Everything runs in the environment VENV, which is made on first use and renewed when
# pyproject.toml or constraints.txt change. PYTHON=... names the interpreter to make it from,
# ARGS=... is passed on to the demo or to pytest.
VENV ?= .venv
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: accelerator cluster demo test slow doctest lint types measured docs ci

demo: $(VENV)/.core
	@$(BIN)/bezoar demo $(ARGS)

test: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup $(ARGS)

# The tests that take minutes, but for those of the two targets below.
slow: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --slow -m slow -n $(JOBS) --dist loadgroup \
	  --ignore tests/accelerator --ignore tests/executors/test_on_ray.py \
	  --ignore tests/bench/test_bench_on_ray.py $(ARGS)

doctest: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --doctest-modules src $(ARGS)

# A real cluster of two nodes, one of which is killed: it takes minutes, so the suite leaves it out.
cluster: $(VENV)/.dev
	@$(INSTALL) --editable '.[dev,ray]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --slow tests/executors/test_on_ray.py \
	  tests/bench/test_bench_on_ray.py tests/test_fleet.py::test_on_ray $(ARGS)

# What runs on an accelerator, on one that is pretended: a process that has it has no other.
accelerator: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --slow -n $(JOBS) --dist loadgroup \
	  tests/accelerator $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python benchmarks/make_measured.py --check
	@$(BIN)/python benchmarks/make_leaderboard.py --check
	@$(BIN)/python benchmarks/make_pages.py --check

types: $(VENV)/.dev
	@$(BIN)/mypy

measured: $(VENV)/.core
	@$(BIN)/python benchmarks/make_measured.py
	@$(BIN)/python benchmarks/make_leaderboard.py
	@$(BIN)/python benchmarks/make_pages.py

docs: $(VENV)/.docs
	@$(BIN)/zensical build --clean

ci:
	@bash .ci/run

$(VENV)/.core: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
	  for python in $(PYTHONS); do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then exec $$python -m venv $(VENV); fi; \
	  done; \
	  echo "bezoar needs Python 3.11 or newer with its venv module (on Debian: python3-venv);" \
	    "tried $(PYTHONS). Give another one with PYTHON=/path/to/python." >&2; exit 1; }
	@echo "Installing bezoar into $(VENV); the first time this downloads PyTorch." >&2
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing what the tests and checks need into $(VENV)." >&2
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@$(INSTALL) --editable '.[docs]'
	@touch $@
