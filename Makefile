# Two commands need nothing else: `make demo` and `make test`. Set-up happens by itself in .venv, and
# again only when a pyproject.toml or constraints.txt has changed. `make help` lists the rest.
# It runs on what macOS brings, too: GNU make 3.81, bash 3.2, BSD's tools. A test keeps it so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
LAB := services/rearview_lab
BUF ?= npx --yes @bufbuild/buf@1.75.0
TORCH := torch==2.13.0
# The first Python that is new enough; a name that is only a version manager's shim does not run.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv)
KEY := $(shell cat pyproject.toml $(LAB)/pyproject.toml constraints.txt 2>/dev/null | cksum | cut -d" " -f1)
RUN_READY := $(VENV)/.ready-run-$(KEY)
TEST_READY := $(VENV)/.ready-test-$(KEY)
comma := ,

# $(call install,WHAT): fill .venv; one line says what is missing. uv does not read pip's settings: where
# pip knows a folder of wheels, uv is told of it. Else uv takes the torch that fits the driver from
# PyTorch's own index; pip, and uv where that index does not answer, takes the CUDA build of several GB.
define install
fail() { echo "make: $$1" >&2; exit 1; }; \
uv='$(UV)'; \
[ -n '$(PYTHON)' ] \
  || fail 'Python 3.11 or newer is missing (Debian: apt install python3 python3-venv; macOS: brew install python)'; \
[ -r constraints.txt ] || fail 'constraints.txt is missing (make constraints)'; \
echo "setting up $(VENV) ($$($(PYTHON) --version), $${uv:-pip}): once, a few minutes at most" >&2; \
if [ ! -x $(BIN)/python ]; then \
  if [ -n "$$uv" ]; then $$uv venv --quiet --clear --python $(PYTHON) $(VENV); \
  else $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
    || fail 'the venv module is missing (Debian: apt install python3-venv)'; \
    rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi; fi; \
if [ -z "$$uv" ] && { [ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet uv 2>/dev/null; }; then \
  uv=$(BIN)/uv; fi; \
links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(PYTHON) -m pip config get global.find-links 2>/dev/null || true)}}"; \
export UV_HTTP_TIMEOUT="$${UV_HTTP_TIMEOUT:-180}" UV_COMPILE_BYTECODE=1; \
if [ -z "$$uv" ]; then \
  $(BIN)/python -m pip install --quiet --upgrade pip \
  && $(BIN)/python -m pip install --quiet -c constraints.txt $(1); \
elif [ -n "$$links" ]; then \
  UV_FIND_LINKS="$$(echo $$links | tr ' ' ,)" $$uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1); \
else \
  UV_TORCH_BACKEND="$${UV_TORCH_BACKEND:-auto}" \
    $$uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1) 2>/dev/null \
  || $$uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1); \
fi || fail 'packages could not be installed: is the package index reachable?'; \
rm -f $(VENV)/.ready-*
endef

.PHONY: help demo studio test same-pictures lint format stubs proto proto-image vendor two-ingresses \
  soak chaos nodes scaling bench picture docs constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## translate the bundled clip through the whole service: out/demo.mp4
	@$(BIN)/rearview demo --out '$(OUT)' $(if $(METHOD),--method '$(METHOD)') $(if $(STYLE),--style '$(STYLE)')

studio: $(RUN_READY) ## a camera, screen or clip through the model, live, in the browser
	@$(BIN)/rearview studio $(ARGS)

test: lint ## every check and test that needs no GPU
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(or $(ARGS),-q)

same-pictures: $(TEST_READY) ## show that no picture differs from those of AGAINST (default: HEAD~1)
	@$(BIN)/python tests/same_pictures.py '$(or $(AGAINST),HEAD~1)' $(ARGS)

lint: $(TEST_READY) ## style, types, layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'make: run `make format`' >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/.layers || { cat $(VENV)/.layers; exit 1; }

format: $(TEST_READY) ## put the code into its one format
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

stubs: $(TEST_READY) ## regenerate services/rearview/v1 from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -Iproto --python_out=services \
	  --grpc_python_out=services --mypy_out=services --mypy_grpc_out=services proto/rearview/v1/*.proto

proto: ## lint, format and breaking changes of proto/ (needs npx)
	@$(BUF) lint proto
	@$(BUF) format --diff --exit-code proto
	@$(BUF) breaking proto --against proto/image.binpb

vendor: ## fetch the page's libraries anew (needs npm): versions stand in .ci/vendor.mjs
	@node .ci/vendor.mjs

proto-image: ## accept today's proto/ as what must not break
	@$(BUF) build proto --exclude-source-info -o proto/image.binpb

two-ingresses: $(TEST_READY) ## the tests of streams, with two ingresses that are called in turn
	@$(BIN)/python -m pytest -q --ingresses 2 $(or $(ARGS),$(addprefix tests/,ingress client studio pages reliability))

soak: $(TEST_READY) ## the long tests
	@$(BIN)/python -m pytest -q -m load $(ARGS)

chaos: $(TEST_READY) ## hurt the service again and again: RUNS runs (default 128), then docs/reliability.md
	@$(BIN)/rearview chaos --campaign all --runs $(or $(RUNS),128) --streams 12 --seconds 6 --pace 1.5 \
	  --resume build/chaos.jsonl $(ARGS); status=$$?; \
	  $(BIN)/python -m loadtest.reliability.document && exit $$status

nodes: $(TEST_READY) ## hurt the nodes of a Ray, and its GCS for a minute, then docs/reliability.md
	@$(BIN)/python -m loadtest.reliability.nodes $(ARGS); status=$$?; \
	  $(BIN)/python -m loadtest.reliability.document && exit $$status

scaling: $(TEST_READY) ## one to three to one replicas of a pipeline while streams run, then docs/figures.md
	@$(BIN)/python -m loadtest.scaling $(ARGS); status=$$?; \
	  $(BIN)/python -m loadtest.report --into docs/figures.md && exit $$status

bench: $(TEST_READY) ## measure the service with open-loop load
	@$(BIN)/python -m loadtest $(ARGS)

picture: $(TEST_READY) ## make docs/moving.webp and docs/pictures anew
	@$(BIN)/python -m rearview_lab.evaluation.moving --out docs/moving.webp $(ARGS)
	@$(BIN)/python -m rearview_lab.evaluation.stills --out docs/pictures

docs: $(TEST_READY) ## build the documentation as a site: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch names its CUDA packages itself, and another backend brings others: they are not pinned here, nor
# what comes from this tree (-e).
constraints: ## resolve constraints.txt anew (needs uv)
	@[ -n '$(UV)' ] || { echo 'make: uv is missing (pip install uv)' >&2; exit 1; }
	@{ echo '# Made by `make constraints`; not edited by hand.'; \
	  env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(UV) pip compile --quiet --universal --python-version 3.11 \
	    --upgrade --all-extras --group dev --no-header --no-annotate -c <(echo '$(TORCH)') \
	    pyproject.toml $(LAB)/pyproject.toml \
	  | grep -vE '^((nvidia|cuda|triton)([^a-z0-9]|$$)|-e )'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean: ## remove what was built; .venv too
	@rm -rf $(VENV) $(OUT)/demo.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist build

$(RUN_READY):
	@$(call install,-e .)
	@touch $@

$(TEST_READY):
	@$(call install,-e '.[lab$(comma)loadtest]' -e $(LAB) --group dev)
	@touch $@ $(RUN_READY)
