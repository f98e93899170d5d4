# Every target that runs something sets itself up first: a virtual environment, and the package with what it needs.
#   make demo | test | docs | readme | reproduce | chapters | clean
#   PYTHON=/path/to/python3.12   another Python for the environment       VENV=folder   another place for it
#   ARGS='-k tape'               options for pytest (test), the demo or reproduce     PARAMS=reports/paper.yaml   parameters (chapters)
SHELL := /bin/sh
VENV ?= .venv
PY := "$(VENV)/bin/python"
READY := $(VENV)/.ready
# an environment that was made elsewhere (the folder was moved or copied) is made again: its scripts name the old place
ifneq ($(shell cat "$(READY)" 2>/dev/null),$(CURDIR))
$(shell [ ! -f "$(READY)" ] || rm -rf "$(READY)" "$(VENV)/bin")
endif

.PHONY: help setup demo test docs readme reproduce chapters clean
help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup: $(READY)  ## the environment alone
$(READY): pyproject.toml constraints.txt
	@python="$(PYTHON)"; new='import sys; sys.exit(sys.version_info < (3,11))'; \
	if [ -z "$$python" ]; then \
	  for p in python3.11 python3.12 python3.13 python3 python; do if $$p -c "$$new" 2>/dev/null; then python=$$p; break; fi; done; fi; \
	if [ -z "$$python" ] || ! "$$python" -c "$$new" 2>/dev/null; then \
	  echo "BrainHarmonix needs Python 3.11 or later, and none was found: install one and run make again, or name it with PYTHON=/path/to/python." >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$("$$python" -V); the first time takes some minutes."; \
	$(PY) -c "$$new" 2>/dev/null || "$$python" -m venv --clear "$(VENV)" || \
	  { echo "The virtual environment could not be made: install the venv module of $$python (Debian: python3-venv) and run make again." >&2; exit 1; }
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@printf '%s\n' "$(CURDIR)" > "$(READY)"

demo: setup  ## from a simulated cohort and a real scan to tokens and a report
	"$(VENV)/bin/brainharmonix" demo $(ARGS)

test: setup  ## every chapter and every test
	$(PY) -m pytest $(ARGS)

docs: setup  ## the site, in _docs
	$(PY) -m brainharmonix.docs site

readme: setup  ## README.md from nbs/index.ipynb
	$(PY) -m brainharmonix.docs readme

reproduce: setup  ## every table and figure of the paper, at smoke scale, then reports/index.html
	"$(VENV)/bin/brainharmonix" reproduce $(ARGS)

chapters: setup  ## run the chapters in order; executed copies go to reports/runs
	$(PY) -m brainharmonix.docs run $(if $(PARAMS),--params "$(PARAMS)")

clean:  ## remove what was built; the environment and demo results stay
	rm -rf _docs _proc build reports/runs .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
