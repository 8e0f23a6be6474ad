# Two commands do all the set-up: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Tests run in so many processes of one thread each; one takes up to 3 GB.
PROCESSES ?= 2

.PHONY: train test test-files test-all check clean

train: $(READY)
	$(BIN)/python tools/train.py configs/ssdlite_v3_large.py --sample

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu and not conversion" -n $(PROCESSES) --dist loadfile

test-files: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "conversion and not slow and not gpu" -n $(PROCESSES) --dist loadfile

test-all: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "detseg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	# mmcv-lite brings OpenCV with windows, albumentations the one without; this order works on servers too.
	$(BIN)/pip install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	# The official evaluation, to compare with in the tests; of its ten dependencies the evaluation needs but one more.
	$(BIN)/pip install -c constraints.txt --no-deps cityscapesscripts pyquaternion
	@touch $(READY)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
