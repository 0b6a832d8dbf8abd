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
	# two processes that take file after file as tests/conftest.py sorts them; with more threads each they would wait for one another
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 python -m pytest --cov -rs -n 2 --dist loadfile --no-loadscope-reorder

.venv/demo-ready: pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint envs/constraints.txt --editable .
	touch $@

.venv/test-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --constraint envs/constraints.txt --editable ".[export,test]"
	touch $@

clean:
	rm -rf .venv results logs .snakemake
