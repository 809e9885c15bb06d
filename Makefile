# Two commands on a fresh machine with python3, venv and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test all-tests bench bench-gpu metric metric-gpu clean

demo: $(READY)
	$(BIN)/zo-objectives demo --output zo-demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

all-tests: $(READY)
	$(BIN)/python -m pytest -m "not gpu"

bench: $(READY)
	$(BIN)/zo-objectives bench --output zo-bench

# Everything that only a CUDA device can tell: costs in bfloat16 at two sizes, the same bits as on the CPU, the marked tests.
bench-gpu: $(READY)
	for shape in 1.3b 6.7b; do \
		$(BIN)/zo-objectives bench noise step memory members --device cuda --dtype bfloat16 --shape $$shape \
			--output zo-bench/cuda-$$shape || exit; \
	done
	$(BIN)/zo-objectives bench journal --device cuda --output zo-bench/cuda-journal
	$(BIN)/python -m pytest -m gpu

# The metric against the loss (reports/metric): DATA holds <task>/{train,validation,test}.jsonl, MODELS the folders TinyStories-656K and all-MiniLM-L6-v2.
DATA ?= DATA
MODELS ?= MODELS
STUDY = for part in study rows settle ways ways_skewed deeper polish_ag polish_sst2 polish_mcc polish_tidy polish_e2e polish_sums text rewards e2e squad encoder; do $(BIN)/zo-objectives study reports/metric/$$part.yaml --data-dir $(DATA) --models $(MODELS) \
	--include-path reports/metric/tasks --output zo-metric/$$part $(1) || exit; done

metric: $(READY)
	$(call STUDY,--jobs 2)

metric-gpu: $(READY)
	$(call STUDY,--jobs 8 --device cuda)

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		pytest pytest-xdist hypothesis ruff mypy pandas-stubs types-PyYAML types-tqdm hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable ".[peft,text,grpo]"
	touch $@

clean:
	rm -rf $(VENV) zo-demo zo-bench
