# demo, test, test-all and check do everything on a fresh machine; each makes .venv if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,vision,hf,lightning,rl,report,track,dev

.PHONY: demo test test-all check install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/secateur compare demo/digits.toml --out runs/demo --jobs 2 --threads 1
	$(BIN)/secateur report runs/demo --out runs/demo/report.html --markdown runs/demo/card.md

test: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

test-all: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench,ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "slow or not slow"

check: install
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

clean:
	rm -rf $(VENV) build dist runs src/*.egg-info
