# `make quickstart` and `make test` install all that they need. On a machine with a GPU run first: EXTRAS=gpu,dev make install
VENV ?= .venv
# The extras of the existing environment, so that `make test` keeps a GPU environment.
EXTRAS ?= $(shell cat $(VENV)/.extras 2>/dev/null || echo cpu,dev)
comma := ,
READY := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: audit chaos docs install licences quickstart quickstart-seeds quickstart-base sbom test test-long lint

install: $(READY)

$(READY): pyproject.toml requirements.lock scripts/install
	@scripts/install $(VENV) $(EXTRAS)
	@rm -f $(VENV)/.installed-* && echo $(EXTRAS) > $(VENV)/.extras
	@touch $@

quickstart: $(READY)  ## train the quick-start: base model against trained model
	@$(VENV)/bin/laser train experiments/quickstart.yaml

quickstart-seeds: $(READY)  ## train the quick-start with 3 seeds: median and range
	@$(VENV)/bin/python -m experiments.quickstart.seeds

quickstart-base: $(READY)  ## make the quick-start's base model and data again; both are committed
	@$(VENV)/bin/python -m experiments.quickstart.task runs/quickstart-task
	@$(VENV)/bin/laser sft experiments/quickstart/sft.yaml
	@cp runs/quickstart-task/train.jsonl runs/quickstart-task/test.jsonl runs/quickstart-task/voting.jsonl experiments/quickstart/
	@rm -rf experiments/quickstart/base && cp -rL runs/quickstart-base/export experiments/quickstart/base

test: $(READY)
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-long: $(READY)  ## the tests that `make test` leaves out
	@$(VENV)/bin/python -m pytest -m long

chaos: $(READY)  ## faults of all kinds in the quick-start on a cluster; SEEDS="0 1 2" for three runs
	@$(VENV)/bin/python -m benchmarks.chaos --seeds $(or $(SEEDS),0)

docs: $(READY)  ## write docs/configuration.md
	@$(VENV)/bin/laser explain --markdown > docs/configuration.md

audit:  ## known vulnerabilities of the packages in requirements.lock; needs a network
	@scripts/audit $(VENV)-audit

sbom: $(READY)  ## the bill of materials of the environment, as sbom.json; needs a network
	@scripts/sbom $(VENV) sbom.json

licences: $(READY)  ## the licence of every installed package
	@$(VENV)/bin/python scripts/licences.py

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache
