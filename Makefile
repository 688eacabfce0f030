# make demo    the main job on real data, embedded defaults (installs .venv first)
# make test    every test, fast ones first
# make check   format, lint, types, arrows of the house
# make faults  everything that breaks, for about an hour: writes docs/faults.md and a row of benchmarks/results/faults.jsonl
#              (the disks' part needs root; make faults KILLS=100 is shorter; make faults-again ONLY=producers completes the
#              last run with the scenarios of that name)
# make bench-gpu  on a machine with a GPU: the kernels' tests on it, then their timings (rows in benchmarks/results)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test faults faults-again check bench-gpu clean
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Spoor needs Python 3.11 or 3.12; say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/spoor demo

FAST := tests/activity tests/kernels tests/encoder tests/test_docs.py tests/test_house.py
SLOWER := tests/kernels/test_triton.py tests/kernels/test_compiled.py tests/encoder/data/test_corpus.py tests/encoder/training/test_parallel.py tests/encoder/baselines/test_floors.py

# Two processes share the tests by files; long files come first, so that none is left over at the end.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
LONG := tests/end_to_end tests/deploy/test_services.py tests/batch/test_flink.py tests/faults tests/streaming \
	tests/spoor/services tests/batch tests/feature_repo tests/store

test: export OMP_NUM_THREADS = 1
test: export JAVA_TOOL_OPTIONS = -XX:TieredStopAtLevel=1 -XX:+UseSerialGC  # brokers start in half the time
test: install
	$(BIN)/pytest $(PARALLEL) $(SLOWER) $(FAST)
	$(BIN)/pytest $(PARALLEL) $(LONG) tests $(FAST:%=--ignore=%)

KILLS := 1000
FAULTS = $(BIN)/python -m pytest tests/faults -m "faults or not faults" --kills $(KILLS) \
	--faults-page docs/faults.md --faults-row benchmarks/results/faults.jsonl
faults: install
	$(FAULTS)

faults-again: install
	$(FAULTS) --faults-again -k "$(ONLY)"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

ON_GPU := --device cuda --dtype bfloat16 --json --keep

bench-gpu: install
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("no GPU here: PyTorch finds none")'
	$(BIN)/pytest tests/kernels
	$(BIN)/python -m benchmarks.jagged_attention $(ON_GPU) --sequences 1024
	$(BIN)/python -m benchmarks.dcat_serving $(ON_GPU)
	$(BIN)/python -m benchmarks.dcat_training $(ON_GPU)

clean:
	-$(BIN)/spoor services down
	rm -rf .spoor runs releases
