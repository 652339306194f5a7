# Targets for people; `make help` lists them. Everything happens in .venv, nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: nothing that is installed after it may choose another build.
$(VENV)/.demo: pyproject.toml constraints.txt setup.py profiler/measure/compiled.c | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.demo
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet -c constraints.txt -e examples/digitreader
	@touch $@

.PHONY: demo
demo: $(VENV)/.demo  ## train a small net on real data, profiled, and show the report
	$(BIN)/epochmeter demo

.PHONY: test
test: $(VENV)/.dev  ## the test suite, in less than five minutes on two cores
	$(BIN)/python -m pytest -q -m "not slow and not proof and not gpu" -n 2 --dist loadfile

.PHONY: test-slow
test-slow: $(VENV)/.dev  ## the slow tests, and the long proofs: gates removed, real ranks, kills, the wheel, the compiled hot path
	$(BIN)/python -m pytest -m "slow and not proof and not gpu" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "proof and not gpu"  # one at a time: they measure, and another one beside them is a cause
	EPOCHMETER_PURE=1 $(BIN)/python -m pytest -m "not proof and not gpu" -n 2 --dist loadfile tests/measure  # the hot path in Python

.PHONY: test-all
test-all:  ## the fast tests on Python 3.10 to 3.13, those of them that are on this machine
	PYTHONPATH=tests $(PYTHON) -m support.every_python

.PHONY: coverage
coverage: $(VENV)/.dev  ## the same, and which lines of ours it runs
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --cov --cov-report=term

.PHONY: lint
lint: $(VENV)/.dev  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: check
check: lint test  ## before each commit

.PHONY: format
format: $(VENV)/.dev  ## put imports and layout in order
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: site
site: $(VENV)/.dev  ## the documentation as a site, in build/site; it asks no other server for anything
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

.PHONY: outputs
outputs: $(VENV)/.dev  ## make what the pages show of commands, and the README's picture; on a quiet machine, with Chromium
	PYTHONPATH=tests $(BIN)/python -m support.outputs

.PHONY: docs
docs: $(VENV)/.dev  ## make the generated pages: the list, the reference run's payload, the example's section, the fleet's dashboard
	$(BIN)/epochmeter telemetry schema --markdown > docs/telemetry.md
	sed '/^<!-- payload -->/q' docs/privacy.md > docs/privacy.new
	{ echo '```text'; EPOCHMETER_HOME=docs/reference $(BIN)/epochmeter telemetry preview; echo '```'; } >> docs/privacy.new
	mv docs/privacy.new docs/privacy.md
	sed '/^<!-- made by/q' examples/digitreader/README.md > examples/digitreader/README.new
	$(BIN)/digitreader telemetry schema --markdown >> examples/digitreader/README.new
	mv examples/digitreader/README.new examples/digitreader/README.md
	sed '/^<!-- rules -->/q' docs/causes.md > docs/causes.new
	$(BIN)/python -c "from profiler.report import rules; print(rules.markdown(), end='')" >> docs/causes.new
	mv docs/causes.new docs/causes.md
	$(BIN)/python -c "import json; from profiler.fleet import dashboard as d; print(json.dumps(d.dashboard(), indent=1))" > examples/pipeline/fleet_dashboard.json
	$(BIN)/python -c "import json; from profiler.fleet import dashboard as d; print(json.dumps(d.alerts(), indent=1))" > examples/pipeline/fleet_alerts.json

.PHONY: bench
bench: $(VENV)/.dev  ## what the profiler costs, measured here: half an hour
	$(BIN)/python benchmarks/suite
	$(BIN)/python benchmarks/bench_causes.py
	$(BIN)/python benchmarks/bench_delivery.py
	$(BIN)/python benchmarks/bench_own_cost.py
	$(BIN)/python benchmarks/bench_telemetry.py
	$(BIN)/python benchmarks/bench_nvml.py
	$(BIN)/python benchmarks/bench_agreement.py

# The peers need other versions of some packages than we do, and much that nobody else here needs.
PEERS := .venv-peers

$(PEERS)/.made: benchmarks/peers.txt constraints.txt pyproject.toml setup.py profiler/measure/compiled.c
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt torch
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e . -r benchmarks/peers.txt
	@touch $@

.PHONY: bench-peers
bench-peers: $(PEERS)/.made  ## the same beside every peer, an hour and a half: the figures and tables of docs/overhead.md
	$(PEERS)/bin/python benchmarks/suite --peers --json benchmarks/results/suite.json
	$(PEERS)/bin/python benchmarks/suite --pages

.PHONY: gpu
gpu:  ## the tests and the benchmarks that need an NVIDIA GPU, with the python that is on the path
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) benchmarks/bench_cuda.py
	$(PYTHON) benchmarks/bench_agreement.py
	$(PYTHON) -m profiler.cli bench

.PHONY: record-nvml
record-nvml:  ## what this machine's NVIDIA GPUs answer, for tests to replay
	$(PYTHON) tests/support/record_nvml.py

.PHONY: clean
clean:  ## remove what the other targets made
	rm -f profiler/measure/compiled.*.so profiler/measure/compiled.*.pyd
	rm -rf $(VENV) $(PEERS) .venvs dist build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
