PYTHON ?= python3
TORCH  := torch==2.13.0

.PHONY: demo test lint bench bench-trainings clean

demo: .venv-demo/installed
	.venv-demo/bin/calm score examples/

# The runtime alone: no PyTorch, and neither pip nor byte code that is never run.
.venv-demo/installed: pyproject.toml
	$(PYTHON) -m venv --without-pip .venv-demo
	$(PYTHON) -m pip --python .venv-demo/bin/python install -q --no-compile -e '.[cpu]'
	touch $@

# Training, export and TensorRT-RTX. PyTorch first and pinned: unpinned it pulls gigabytes of CUDA packages.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q $(TORCH)
	.venv/bin/pip install -q -e '.[cpu,train,captions,export,tensorrt-rtx,dev]'
	touch $@

# The development Triton server needs NumPy 1, so it has an environment of its own.
.venv-triton/installed: pyproject.toml
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install -q -e '.[triton-server,dev]'
	touch $@

TRITON_TESTS := tests/test_triton.py tests/test_triton_config.py

test: .venv/installed .venv-triton/installed
	.venv/bin/python -m pytest $(addprefix --ignore=,$(TRITON_TESTS))
	.venv-triton/bin/python -m pytest $(TRITON_TESTS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	MYPYPATH=runtime:train:export .venv/bin/mypy runtime/calm_runtime export/calm_export train/calm_train

# Photographs no model of this project was trained on, and photographs with raters.csv (benchmarks/profiles.py): PHOTOS=... RATED=...
bench: .venv/installed
	.venv/bin/python benchmarks/nano_quality.py --photos $(PHOTOS)
	.venv/bin/python benchmarks/suggestions.py --photos $(PHOTOS)
	.venv/bin/python benchmarks/profiles.py --rated $(RATED)

# What the runs of benchmarks/train_nano.py in RUNS=... learnt of the photographs that people rated, RATED=...
bench-trainings: .venv/installed
	.venv/bin/python benchmarks/human_taste.py --rated $(RATED) --runs $(RUNS)
	.venv/bin/python benchmarks/self_supervision.py --rated $(RATED) --runs $(RUNS)

clean:
	rm -rf .venv .venv-demo .venv-triton build dist
