# `make quickstart` and `make test` set up all they need. Other machines: EXTRAS=gpu,dev make install
VENV ?= .venv
EXTRAS ?= cpu,dev
READY := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
comma := ,

.PHONY: install quickstart quickstart-seeds test lint clean

install: $(READY)

$(READY): pyproject.toml requirements.lock scripts/install
	@scripts/install $(VENV) $(EXTRAS)
	@touch $@

quickstart: $(READY)  ## train the quick-start: base model against trained model
	@$(VENV)/bin/laser train experiments/quickstart.yaml

quickstart-seeds: $(READY)  ## the same over 3 seeds: median and range
	@$(VENV)/bin/python -m experiments.quickstart.seeds

test: $(READY)
	@$(VENV)/bin/python -m pytest

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
