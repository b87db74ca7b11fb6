# Every target works on a machine that has only Python >= 3.11 and make: what it needs is installed first.
PYTHON ?= python3
VENV ?= .venv
PRESET ?= laptop
STUDY ?= qm9_$(PRESET)
ARGS ?=
ONLY ?= $(if $(filter laptop,$(PRESET)),seed=0)
TOYS ?= toys_groups toys_flow_velocity toys_flow_clean

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help install lint format test test-all test-slurm test-faults perf performance growth smoke ablation-qm9 ablation-toys ablation-conformers ablation-crystals ablation-proteins report publish readme answers clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## Create .venv with the versions of constraints.txt (PYTHON=... for another interpreter)

# torch first and by its exact version: a range asked for by another package would bring the newest CUDA build
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"equibench needs Python >= 3.11, $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

lint: $(INSTALLED) ## Check style, format and types (changes nothing)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED) ## Mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(INSTALLED) ## Run the fast tests (minutes, CPU); with QM9_DIR also those on real QM9
	$(PYTEST) -m 'not slow and not slurm' $(ARGS)

test-all: $(INSTALLED) ## Run all tests, the long statistical ones too
	$(PYTEST) $(ARGS)

test-slurm: $(INSTALLED) ## Test on a real Slurm of one node, which is started and stopped (as root; installs slurm-wlm and munge)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/slurm -m slurm -rs $(ARGS)

test-faults: $(INSTALLED) ## Kill, cut, damage, fill and share a tiny study, and write the table of docs/reliability.md (ARGS='kills disk')
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m faults.table $(ARGS)

perf: $(INSTALLED) ## Time hooks, networks and stages, ours against the padded reference (PERF_SIZE=published for that size)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/performance -o addopts= --benchmark-only --benchmark-group-by=group $(ARGS)

performance: $(INSTALLED) ## Measure the table of docs/performance.md on all cores (20 to 25 minutes on two, if nothing else runs)
	PYTHONPATH=.:tests $(BIN)/python -m performance.performance $(ARGS)

growth: $(INSTALLED) ## Measure the growth of steps and sampling with atoms, one thread, every method, then the page (some minutes)
	PYTHONPATH=.:tests $(BIN)/python -m performance.growth $(ARGS)
	PYTHONPATH=.:tests $(BIN)/python -m performance.performance --render

smoke: ## Run every method and backbone for a few steps on the embedded set (two minutes)
	@$(MAKE) --no-print-directory ablation-qm9 PRESET=smoke

ablation-qm9: $(INSTALLED) ## Run the comparison and print its table (PRESET=smoke|laptop|workstation|paper ARGS='key=value ...'; laptop: seed 0, ONLY= for all seeds)
	@$(BIN)/equibench run qm9_$(PRESET) $(ARGS) $(if $(ONLY),--only $(ONLY)); ran=$$?; $(BIN)/equibench report qm9_$(PRESET) && exit $$ran

ablation-toys: $(INSTALLED) ## Run the toys whose law is known in closed form (minutes; TOYS=toys_sign_flip: the published toy, hours)
	@for toys in $(TOYS); do $(BIN)/equibench run $$toys $(ARGS) && $(BIN)/equibench report $$toys || exit 1; done

ablation-conformers: $(INSTALLED) ## Run conformer generation with flow matching, seed 0 (`equibench plan` says the time; ONLY= for all seeds)
	@$(BIN)/equibench run conformers_laptop $(ARGS) $(if $(ONLY),--only $(ONLY)); ran=$$?; $(BIN)/equibench report conformers_laptop && exit $$ran

ablation-crystals: $(INSTALLED) ## Run crystal structure prediction, seed 0 (`equibench plan` says the time; ONLY= for all seeds)
	@$(BIN)/equibench run crystals_laptop $(ARGS) $(if $(ONLY),--only $(ONLY)); ran=$$?; $(BIN)/equibench report crystals_laptop && exit $$ran

ablation-proteins: $(INSTALLED) ## Run protein backbones with flow matching, seed 0 (`equibench plan` says the time; ONLY= for all seeds)
	@$(BIN)/equibench run proteins_laptop $(ARGS) $(if $(ONLY),--only $(ONLY)); ran=$$?; $(BIN)/equibench report proteins_laptop && exit $$ran

report: $(INSTALLED) ## Build the report of a study from its records (STUDY=..., by default the preset's)
	$(BIN)/equibench report $(STUDY)

publish: $(INSTALLED) ## Copy a study's records and report into results/ (STUDY=...)
	$(BIN)/equibench publish $(STUDY)

readme: $(INSTALLED) ## Copy the published laptop table and figure into README.md
	$(BIN)/python -m analysis.readme

answers: $(INSTALLED) ## Write docs/answers.md from the published results
	$(BIN)/python -m analysis.answers

clean: ## Remove caches; .venv, runs/ and results/ stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	find bench methods analysis tests -name __pycache__ -prune -exec rm -rf {} +
