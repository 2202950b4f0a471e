# Two commands do all the set-up: `make demo` and `make test`.
# Debian's Python is built with profile-guided optimisation and a seventh faster than one built without; any of 3.11 or newer will do.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test check lock bench bench-names fuzz fuzz-api scale kills sbom audit-deps clean

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/ready  ## run the example county on the embedded database; ARGS=--exit ends after the report
	$(BIN)/tongjian demo $(ARGS)

test: $(VENV)/ready  ## all tests; ARGS="-k word" narrows them (5: one of the two parts has no such test)
	tests/debian-packages.sh
	$(BIN)/pytest -n 2 --dist loadfile -m "not real_time" $(ARGS) || [ $$? = 5 ]
	$(BIN)/pytest -m real_time $(ARGS) || [ $$? = 5 ]

check: $(VENV)/ready  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready  ## quarter of an hour: conversion, ingest, reads, searches and order-time answers; figures in docs/performance.md; ARGS=--json
	$(BIN)/tongjian bench convert $(ARGS)
	$(BIN)/tongjian bench ingest $(ARGS)
	$(BIN)/tongjian bench read $(ARGS)
	$(BIN)/tongjian bench search $(ARGS)
	$(BIN)/tongjian bench recognize $(ARGS)

bench-names: $(VENV)/ready  ## proposals of the mapping worklist on local names: top-1, top-5, refused
	$(BIN)/python benchmarks/bench_names.py
	$(BIN)/python benchmarks/bench_names.py --file benchmarks/local_names_later.csv
	$(BIN)/python benchmarks/bench_names.py --file benchmarks/local_names_fresh.csv
	$(BIN)/python benchmarks/bench_names.py --file benchmarks/local_names_vendors.csv

lock: ## renew requirements.lock: names, versions and hashes, no addresses (needs uv)
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -U -o requirements.lock

fuzz: $(VENV)/ready  ## damaged messages through the readers: FUZZ_SECONDS (600) of CPU time; figures in docs/fuzzing.md
	$(BIN)/python -m tests.fuzz.readers $(ARGS)

fuzz-api: $(VENV)/ready  ## every operation of /openapi.json with made-up values, EXAMPLES (200) each, other ones each time: no 5xx
	TONGJIAN_OPENAPI_EXAMPLES=$(or $(EXAMPLES),200) TONGJIAN_SEED=$(or $(TONGJIAN_SEED),$(shell date +%s)) \
	$(BIN)/pytest --timeout 0 tests/edge/test_openapi.py $(ARGS)

scale: kills  ## the long forms, hours: journeys, then reads and searches at 1 and 10 million Observations
	$(BIN)/tongjian bench scale $(ARGS)
	$(MAKE) spark

spark: $(VENV)/ready  ## the duplicate audit of a year on PostgreSQL, DuckDB and Spark (pyspark, 450 MB, in build/spark; Java 17)
	$(PYTHON) -m venv --system-site-packages build/spark
	build/spark/bin/python -m pip install --quiet --disable-pip-version-check 'pyspark>=4.0' setuptools
	$(BIN)/tongjian bench audit --observations $(or $(SPARK_OBSERVATIONS),1000000) --export build/spark/export --json
	PYTHONPATH=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'):. build/spark/bin/python benchmarks/audit_on_spark.py build/spark/export

kills: $(VENV)/ready  ## long journeys (half an hour): kills, outages, arrival orders, floods, backup; ARGS="-k word"; figures in docs/resilience.md
	TONGJIAN_KILLS=200 TONGJIAN_KILL_MESSAGES=50000 TONGJIAN_OUTAGE_SECONDS=60 TONGJIAN_STORIES=1000 TONGJIAN_ORDER_MESSAGES=2000 \
	TONGJIAN_CLOCK_MESSAGES=1000 TONGJIAN_BACKUP_MESSAGES=1000 TONGJIAN_FLOOD_CONNECTIONS=64 TONGJIAN_FLOOD_MESSAGES=100 \
	TONGJIAN_QUIET_MESSAGES=100 TONGJIAN_SEED=$(or $(TONGJIAN_SEED),random) \
	$(BIN)/pytest -s $(addprefix tests/journeys/test_,kills.py outages.py order.py clock.py fairness.py backup.py) $(ARGS)

sbom: $(VENV)/ready  ## software bill of materials: build/sbom.cdx.json (CycloneDX)
	$(BIN)/python deploy/sbom.py build/sbom.cdx.json

audit-deps: $(VENV)/ready  ## known faults of the dependencies: osv.dev, or the list deploy/advisories.json; ARGS=--offline
	$(BIN)/python deploy/audit_dependencies.py $(ARGS)

clean:
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
