# Two commands for a fresh machine with Python 3.11 to 3.13 and pip: `make demo` and `make test`.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin

.PHONY: demo test clean

demo: .venv/demo-ready  ## phantom scans to a report, everything at once
	PATH="$(BIN):$$PATH" snakemake --cores all
	@echo "The report: file://$(CURDIR)/results/demo/report.html"

test: .venv/test-ready  ## style, types, workflow checks and the tests with their coverage
	PATH="$(BIN):$$PATH" ruff check .
	PATH="$(BIN):$$PATH" ruff format --check .
	PATH="$(BIN):$$PATH" mypy
	PATH="$(BIN):$$PATH" snakefmt --check Snakefile
	PATH="$(BIN):$$PATH" snakemake --lint
	PATH="$(BIN):$$PATH" python -m pytest --cov

.venv/demo-ready: pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint envs/constraints.txt --editable .
	touch $@

.venv/test-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --constraint envs/constraints.txt --editable ".[export,test]"
	touch $@

clean:
	rm -rf .venv results logs .snakemake
