# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test check lock bench sbom audit-deps clean

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/ready  ## run the example county on the embedded database; ARGS=--exit ends after the report
	$(BIN)/tongjian demo $(ARGS)

test: $(VENV)/ready  ## all tests; ARGS="-k word" narrows them
	$(BIN)/pytest $(ARGS)

check: $(VENV)/ready  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: ## renew requirements.lock: names, versions and hashes, no addresses (needs uv)
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -U -o requirements.lock

sbom: $(VENV)/ready  ## software bill of materials: build/sbom.cdx.json (CycloneDX)
	$(BIN)/python deploy/sbom.py build/sbom.cdx.json

audit-deps: $(VENV)/ready  ## known faults of the dependencies: osv.dev, or the list deploy/advisories.json; ARGS=--offline
	$(BIN)/python deploy/audit_dependencies.py $(ARGS)

clean:
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
