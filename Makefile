# make demo: train and judge the tiny reward model.   make demo-rl: and improve the tiny editor with it.   make test: the whole suite.   make plans, make lint: see CONTRIBUTING.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
RLDIR ?= runs/demo_rl
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder --durations 25 # a file's tests share fixtures and compiled programs
RUN := $(VENV)/bin/python

.PHONY: demo demo-rl test plans lint
demo: $(VENV)/demo.installed
	$(RUN) scripts/train_rm.py --config configs/rm_tiny.py --workdir $(WORKDIR)

demo-rl: $(VENV)/demo.installed
	test -e $(WORKDIR)/finished || $(RUN) scripts/train_rm.py --config configs/rm_tiny.py --workdir $(WORKDIR)
	$(RUN) scripts/train_grpo.py --config configs/grpo_tiny.py --workdir $(RLDIR) \
		--config.rl.judge.model=$(WORKDIR)/model

test: $(VENV)/test.installed
	$(RUN) -m pytest $(PYTEST)

plans: $(VENV)/test.installed
	$(RUN) scripts/plan.py --all

lint: $(VENV)/test.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml setup.py | $(RUN)
	@echo "installing the package into $(VENV) (once, a minute or two)"
	$(RUN) -m pip install --quiet --no-compile --editable .
	@touch $@

$(VENV)/test.installed: pyproject.toml setup.py | $(RUN)
	@echo "installing the package and the test tools into $(VENV) (once, a few minutes)"
	$(RUN) -m pip install --quiet --no-compile --editable ".[test]"
	-$(RUN) -m pip install --quiet --no-compile --no-deps editscore==0.2 # prompt texts, OmniGen2's reference; their tests skip without, and .ci/run fails
	@touch $@ $(VENV)/demo.installed
