# `make up` and `make test` need only Python ≥ 3.11 with venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UP_ARGS ?= --simulate 20
PYTEST_ARGS ?=
SLOW := browser deploy documents e2e faults
WORKERS ?= 4
# One worker runs all tests of a file, so its fixtures are created once; the slowest files run first.
XDIST  := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(XDIST)

.DEFAULT_GOAL := help
.PHONY: baseline upgrade-drill elastic smoke test-cluster prove-compose prove-k8s bench-api bench-ws bench-flush bench-lua bench-memory bench-reseed bench-system bench-resources bench-boards bench-scale drill faults model help up docs reference setup test test-fast coverage check lint types layers format lock env openapi checksums wheel lambda bench soak loadtest

help:            ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

up: $(VENV)/.up  ## run the whole system on embedded servers; Ctrl-C stops it
	$(BIN)/scoreboard up $(UP_ARGS)

test: $(VENV)/.dev  ## run every test, in WORKERS=4 processes
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/.dev  ## run the fast tests, in about 80 seconds
	@echo 'Left out: tests marked slow and tests/{$(shell echo $(SLOW) | tr " " ",")} (make test runs them)'
	$(PYTEST) -m 'not slow' $(addprefix --ignore=tests/,$(SLOW)) $(PYTEST_ARGS)

PROVE := $(BIN)/python -m pytest -v --timeout 1800

prove-compose: $(VENV)/.dev  ## run docker-compose.yml on an own container engine, with stand-ins for the images
	$(PROVE) tests/proofs/compose $(PYTEST_ARGS)

smoke: $(VENV)/.up  ## run docker-compose.yml on the Docker of this machine, and check it under faults
	$(BIN)/python -m tests.proofs.compose.smoke

prove-k8s: $(VENV)/.dev  ## apply deploy/k8s to an own Kubernetes control plane
	$(PROVE) tests/proofs/kubernetes $(PYTEST_ARGS)

coverage: $(VENV)/.dev  ## run every test and report lines and branches without coverage
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m pytest $(XDIST) $(PYTEST_ARGS); status=$$?; \
	  $(BIN)/coverage combine -q && $(BIN)/coverage report; exit $$status

check: lint types layers loadtest test docs  ## run what CI runs

lint: $(VENV)/.dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## check static types
	$(BIN)/basedpyright --warnings

layers: $(VENV)/.dev  ## check the import contracts
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.dev  ## create .venv with the development dependencies

COMPILE := $(BIN)/uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-header \
	--python-version 3.11 pyproject.toml

lock: $(VENV)/.dev  ## update the pins in requirements/*.txt, with hashes
	$(COMPILE) --extra embedded --extra otel --extra bench --extra parquet --group dev -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt -o requirements/base.txt
	$(COMPILE) --extra otel -c requirements/dev.txt -o requirements/otel.txt
	$(COMPILE) --extra parquet -c requirements/dev.txt -o requirements/parquet.txt
	$(COMPILE) --extra embedded --extra bench --group build -c requirements/dev.txt -o requirements/up.txt
	$(BIN)/uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-header \
	  --python-version 3.11 --group build -c requirements/dev.txt -o requirements/build.txt
	$(BIN)/uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-header \
	  --python-version 3.11 --group docs -c requirements/dev.txt -o requirements/docs.txt
	$(BIN)/uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-header \
	  --python-version 3.11 --group lambda -c requirements/base.txt -o requirements/lambda.txt
	$(BIN)/uv pip compile -q --generate-hashes --universal --no-emit-index-url --no-header \
	  --python-version 3.11 --group loadtest -c requirements/dev.txt -o requirements/loadtest.txt

FAULTS_ARGS ?= --minutes 15

faults: $(VENV)/.dev  ## inject faults under load: FAULTS_ARGS="--seed 7 --minutes 15"
	$(BIN)/python -m tests.faults.campaign $(FAULTS_ARGS)

test-cluster: $(VENV)/.dev  ## run the tests on a cluster and with sentinels, and inject faults into both: FAULTS_ARGS="--seed 7 --minutes 15"
	$(BIN)/python -m pytest -v tests/cluster $(PYTEST_ARGS)
	$(PYTEST) tests/integration --on-cluster $(PYTEST_ARGS)
	$(PYTEST) tests/e2e/test_score.py tests/e2e/test_recovery.py --on-cluster $(PYTEST_ARGS)
	$(PYTEST) tests/e2e/test_score.py tests/e2e/test_recovery.py --on-sentinel $(PYTEST_ARGS)
	$(BIN)/python -m tests.faults.campaign --cluster $(FAULTS_ARGS)
	$(BIN)/python -m tests.faults.campaign --sentinel $(FAULTS_ARGS)

model: $(VENV)/.dev  ## compare boards with their model for twenty times as long as make test does
	$(BIN)/python -m pytest tests/model/test_competitions.py --hypothesis-profile long $(PYTEST_ARGS)

DRILL_ARGS ?=

drill: $(VENV)/.dev  ## break a running system, to practise the runbook: DRILL_ARGS="--faults 3"
	$(BIN)/python -m tests.drills start $(DRILL_ARGS)

UPGRADE_ARGS ?=

upgrade-drill: $(VENV)/.dev  ## upgrade and roll back every pair of versions under load, in several orders
	$(BIN)/python -m tests.upgrade.drill $(UPGRADE_ARGS)

REF ?= HEAD

baseline: $(VENV)/.dev  ## make a commit the previous release of tests/upgrade: REF=v0.1.0
	$(BIN)/python -m tests.upgrade.versions $(REF)

bench: $(VENV)/.dev  ## run every benchmark and write its tables: BENCH_ARGS="--only api,ws --quick --no-write"
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

SOAK_ARGS ?= --minutes 30

soak: $(VENV)/.dev  ## find the highest steady rate of the whole system, hold it, go beyond it: SOAK_ARGS="--minutes 30 --write"
	$(BIN)/python -m tests.bench.soak $(SOAK_ARGS)

bench-reseed: $(VENV)/.dev  ## benchmark reseed and verify with a million users
	$(BIN)/python -m tests.bench.reseed $(BENCH_ARGS)

bench-api: $(VENV)/.dev  ## benchmark updates through the api, against a plain Litestar handler
	$(BIN)/python -m tests.bench.api $(BENCH_ARGS)

bench-ws: $(VENV)/.dev  ## benchmark the fan-out, against websockets.broadcast() and Litestar
	$(BIN)/python -m tests.bench.ws $(BENCH_ARGS)

bench-boards: $(VENV)/.dev  ## measure 10,000 idle boards and 200 active ones
	$(BIN)/python -m tests.bench.boards $(BENCH_ARGS)

bench-scale: $(VENV)/.dev  ## measure what partitions, boards and more processes cost, and check the model: BENCH_ARGS="--only reads"
	$(BIN)/python -m tests.bench.scale $(BENCH_ARGS)

bench-memory: $(VENV)/.dev  ## measure what a user and an action need in Redis and on disks
	$(BIN)/python -m tests.bench.memory $(BENCH_ARGS)

bench-lua: $(VENV)/.dev  ## measure submit.lua on boards of up to 5 million users, against four plain commands
	$(BIN)/python -m tests.bench.lua $(BENCH_ARGS)

bench-flush: $(VENV)/.dev  ## benchmark the flusher, COPY against executemany
	$(BIN)/python -m tests.bench.flush $(BENCH_ARGS)

bench-system: $(VENV)/.dev  ## measure an update's CPU time in the api, Redis, the flusher and PostgreSQL
	$(BIN)/python -m tests.bench.system $(BENCH_ARGS)

bench-resources: $(VENV)/.dev  ## measure memory, CPU and open files of each service and job
	$(BIN)/python -m tests.bench.resources $(BENCH_ARGS)

loadtest: $(VENV)-loadtest/.done  ## install locust into .venv-loadtest, for loadtest/locustfile.py

openapi: $(VENV)/.dev  ## write docs/openapi.json and docs/reference/problems.md
	$(BIN)/python -m api.documents.openapi

reference: $(VENV)/.dev  ## write docs/reference/{settings,metrics,log-events,commands}.md from the code
	$(BIN)/python docs/generate.py

elastic: $(VENV)/.dev  ## write the templates of deploy/elastic from the table of log fields
	$(BIN)/python deploy/elastic/build.py

docs: $(VENV)/.docs  ## build the documentation into build/docs/html; a warning is an error
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	@echo 'Open build/docs/html/index.html'

env: $(VENV)/.dev  ## write .env.example from the settings and deploy/docker/variables.env
	$(BIN)/scoreboard config example > .env.example
	cat deploy/docker/variables.env >> .env.example

checksums:       ## write the checksums of the migrations
	cd sql/migrations && sha256sum 0*.sql > CHECKSUMS

wheel: $(VENV)/.dev  ## build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel

LAMBDA_ARGS ?=

lambda: $(VENV)/.dev  ## build dist/scoreboard-rotation.zip for AWS Lambda: LAMBDA_ARGS="--arch arm64 --python 3.13"
	$(BIN)/python deploy/aws/package.py $(LAMBDA_ARGS)

# Stamp files: pip runs only if the pins have changed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'scoreboard needs Python 3.11 or later: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'python3 cannot create a virtual environment (Debian: apt install python3-venv)' >&2; exit 1; }

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/.up: requirements/up.txt pyproject.toml | $(VENV)/bin/python
	@echo 'Setting up $(VENV) (once, about a minute) …'
	$(PIP) --require-hashes -r requirements/up.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo 'Setting up $(VENV) for development (once, about two minutes) …'
	$(PIP) --require-hashes -r requirements/dev.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.up

# locust brings gevent, and a plugin that pytest would load: it does not share the environment of the tests.
$(VENV)-loadtest/.done: requirements/loadtest.txt
	$(PYTHON) -m venv $(VENV)-loadtest
	$(VENV)-loadtest/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/loadtest.txt
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.dev
	$(PIP) --require-hashes -r requirements/docs.txt
	@touch $@
