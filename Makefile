# Everything starts here: `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILDER ?= docker
REGISTRY ?= ghcr.io/dmd-operator
# Where these are not given, the virtual environment has them.
UV ?= $(BIN)/uv
HELM ?= $(BIN)/python -m tests.chart.helm
ZENSICAL ?= $(BIN)/zensical
setup-for = $(if $(findstring $(BIN)/,$(1)),setup)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' crds/dmd_api/__init__.py)
export UV_LINK_MODE ?= hardlink
# The certificates that this machine trusts, as pip does: uv's own list knows no company's.
export UV_SYSTEM_CERTS ?= 1
# Stages are processes of their own: without compiled bytecode each would spend a quarter of a minute importing.
unexport PYTHONDONTWRITEBYTECODE

# pytest's code for "no tests": ARGS may choose from one half alone.
NONE_CHOSEN = test $$? -eq 5

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-local test-control-plane build-cluster conformance fuzz bench gpu-check lint format constraints generate images test-images dist chart docs release-check release-notes publish-chart cluster-up cluster-down clean

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

# The stamp is renewed whenever what it depends on changes, so that every target can simply ask for it.
$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[operator,trainer,serve,docs,dev]'
	touch $@

setup: $(VENV)/.stamp ## Make the virtual environment with pinned dependencies

demo: setup ## Distil the digits teacher into a one-step generator on this machine
	$(BIN)/dmdctl run examples/distill-digits.yaml

test: setup ## Run all tests: those that need nodes one by one in the end, while the others run what they need is built
	$(MAKE) --no-print-directory --jobs=3 test-local test-control-plane build-cluster
	$(BIN)/pytest -m nodes $(ARGS) || $(NONE_CHOSEN)

test-local: setup
	$(BIN)/pytest -n 2 --dist worksteal -m "not cluster" $(ARGS) || $(NONE_CHOSEN)

# These mostly wait. They are shown when they are over: lines of two test runs would get mixed up.
test-control-plane: setup
	@log=$$(mktemp); \
	{ $(BIN)/python -m tests.cluster build control-plane && \
	  { $(BIN)/pytest -m "cluster and not nodes" $(ARGS) || $(NONE_CHOSEN); }; } > $$log 2>&1; \
	code=$$?; cat $$log; rm $$log; exit $$code

build-cluster: setup
	$(BIN)/python -m tests.cluster build

conformance: setup ## Hold every family of teachers, with every scheduler configuration, against diffusers' own pipelines
	DMD_CONFORMANCE=1 $(BIN)/pytest -n 2 --dist worksteal tests/trainer/conformance $(ARGS)

FUZZED = tests/trainer/data/test_damage.py tests/trainer/test_damaged_teachers.py tests/api/test_agreement.py \
    tests/operator/fuzz
fuzz: setup ## Read 500 damaged files of each format of data, 500 damaged teachers, and whatever tenants write: DMD_DAMAGED=5000 for more
	DMD_DAMAGED=$${DMD_DAMAGED:-500} $(BIN)/pytest $(FUZZED) $(ARGS)

bench: setup ## Run benchmarks/ and write benchmarks/results.json
	$(BIN)/python -m benchmarks $(ARGS)

gpu-check: ## Check on this machine's GPU what needs one, in miniature without: ARGS="PART... --out FOLDER"
	PYTHONPATH=crds:trainer:. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

lint: setup ## ruff, mypy, the import contracts, and whether generated files are current
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m dmd_api.generate --check
	$(BIN)/python docs/tables.py --check

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: setup ## Regenerate the CRD, the manifest's reference, the chart's table of values, the tables of files
	$(BIN)/python -m dmd_api.generate
	$(BIN)/python docs/tables.py

constraints: setup ## Resolve all dependencies again into constraints.txt, with the hashes of their files
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --universal --no-header --no-annotate --no-emit-index-url --all-extras --python-version 3.11 pyproject.toml --output-file constraints.txt

images: image-operator image-trainer ## Build both images: BUILDER=podman or buildah, REGISTRY=..., BUILD_ARGS="--build-arg BASE=IMAGE@sha256:..." or a proxy

image-%:
	$(BUILDER) build $(BUILD_ARGS) --file images/$*/Dockerfile --tag $(REGISTRY)/dmd-$*:$(VERSION) .

test-images: setup ## Build the trainer's image, gigabytes of CUDA, and distil in it (needs root, buildah, debootstrap)
	DMD_TEST_IMAGES=1 $(BIN)/pytest tests/chart/test_images.py $(ARGS)

dist: $(call setup-for,$(UV)) ## Build the wheel and the source distribution into dist/
	$(UV) build --quiet --out-dir dist .

chart: $(call setup-for,$(HELM)) ## Package the Helm chart into dist/
	mkdir -p dist
	$(HELM) package charts/dmd-operator --version $(VERSION) --app-version $(VERSION) --destination dist

docs: $(call setup-for,$(ZENSICAL)) ## Build the documentation's site into dist/site
	$(PYTHON) docs/gather.py dist/docs
	$(ZENSICAL) build --strict --clean

release-check: ## Check that TAG=v... is the version's, and that the changelog has it
	@test "$$TAG" = "v$(VERSION)" || { echo "the tag '$$TAG' is not v$(VERSION), as crds/dmd_api/__init__.py says"; exit 1; }
	@$(MAKE) --no-print-directory release-notes > /dev/null

release-notes: ## Print the changelog's section of this version
	@sed -n '/^## \[$(VERSION)\]/,/^## \[/{/^## \[/!p}' CHANGELOG.md | grep . || { echo "CHANGELOG.md has no section [$(VERSION)]" >&2; exit 1; }

publish-chart: ## Push the packaged chart to REGISTRY and sign it
	HELM="$(HELM)" charts/publish dist/dmd-operator-$(VERSION).tgz $(REGISTRY)/charts

publish-%: ## Push an image (operator, trainer) to REGISTRY, sign it, attest its packages
	BUILDER="$(BUILDER)" images/publish $(REGISTRY)/dmd-$*:$(VERSION)

cluster-up: setup ## Bring up a Kubernetes cluster of two nodes on this machine, and print its KUBECONFIG (Linux, root)
	@$(BIN)/python -m tests.cluster up

cluster-down: setup ## Take that cluster down, and remove what killed test runs left behind
	@$(BIN)/python -m tests.cluster down

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache
