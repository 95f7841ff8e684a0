# `make quickstart` and `make test` set up all they need. Other machines: EXTRAS=gpu,dev make install
VENV ?= .venv
EXTRAS ?= cpu,dev
READY := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
comma := ,

.PHONY: install quickstart test lint clean

install: $(READY)

$(READY): pyproject.toml requirements.lock scripts/install
	@scripts/install $(VENV) $(EXTRAS)
	@touch $@

quickstart: $(READY)  ## train the quick-start: base model against trained model
	@$(VENV)/bin/laser train experiments/quickstart.yaml

test: $(READY)
	@$(VENV)/bin/python -m pytest

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
