# make demo   train, export, measure and report on the embedded data (under 10 minutes on 2 cores)
# make test   every feature once, against the installed package (under 15 minutes on 2 cores)
#
# Either does all the set-up; it needs python3 with pip. Other targets: setup, check, test-all,
# test-exports, bench, bench-counts, bench-compare, bench-train, scaling, memory-format, artifacts,
# int8, gpu, zoo-speed, short-training, study, report, clean. Variables: PYTHON=python3.13,
# TORCH=system|cpu, STACK=cpu|gpu|v100, WORKERS=4, TESTS=tests/test_doctor.py, BASE=main (of
# bench-compare), BENCH_TRAIN="--models resnet_20,resnet_56 --seconds 20", and of gpu BUDGET=25m,
# SLICE=9m, EVIDENCE=gpu-evidence, GPU="--steps train --models resnet_20,resnet_56".

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TESTS ?= tests

# pinned: the torch of constraints/. system: the one that PYTHON already has.
# cpu: from PyTorch's CPU wheel index, whose address TORCH_CPU_INDEX holds (untested).
TORCH ?= pinned

# The stack follows the oldest NVIDIA GPU in the machine.
CAPABILITY := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
	| grep -E '^[0-9]+[.][0-9]+$$' | sort -n | head -n 1)
STACK ?= $(if $(filter 7.0,$(CAPABILITY)),v100,$(if $(CAPABILITY),gpu,cpu))

# What of the full matrix .ci/run adds to `make test`; the whole of .ci/run has 60 minutes.
CI_EXTRA = slow and not gpu and not network
# The exports of every network take longer than that on 2 cores: make test-exports.
CI_EXTRA_TESTS = $(addprefix tests/test_,artifacts_table.py bench_cli.py bench_untrained.py cost.py \
	costs.py counts.py elastic.py gate.py gpu_evidence.py int8_families.py killed_runs.py memory.py \
	mission.py neighbours.py pretrained.py readme.py scaling.py short_training.py tensorrt.py)

EXPORTS = tests/test_every_model_exports.py

# The main job of `make demo`.
DEMO_TRAIN = resnet_20 --dataset cifar100-mini --recipe quick --epochs 10
DEMO_EXPORT = --to onnx
DEMO_BENCH = --batch 1,256 --budget 10
DEMO_REPORT = --out report

# Options of tests/benchmarks/bench_train.py; without any, resnet_20 on CIFAR-100 (ZOO_DATA).
BENCH_TRAIN =

# What bench-compare times the working tree against.
BASE ?= main

# Time in all and of one call, folder and further options of tests/benchmarks/gpu_evidence.py.
BUDGET ?= 25m
SLICE ?= 9m
EVIDENCE ?= gpu-evidence
GPU =

# The committed report, from the committed records.
REPORT = bench_results --out bench_results/report --readme bench_results/README.md

# The forward times of the whole zoo, a study with a report of its own.
ZOO_SPEED = bench_results/zoo
ZOO_BENCH = --backend eager --threads 1 --batch 1,8 --budget 2.5

# Both studies again as an example: the shipped images, each training bounded by work.
STUDY = bench_results/study
STUDY_LISTS = comparison "ablation all" second-study
SWEEP = --dataset cifar100-mini --seeds 0 --max-macs 1e11 --to onnx \
	--backend eager,onnx --batch 1,8 --budget 1

# ---------------------------------------------------------------------------------------------
PYTHON_VERSION := $(shell { $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'; } 2>/dev/null)
PYTHONS = 3.11 3.12 3.13$(if $(filter v100,$(STACK)),, 3.14)
PINS = constraints/$(if $(filter v100,$(STACK)),v100,default).txt
SYSTEM = $(if $(filter system,$(TORCH)),--system-site-packages)
PIP = "$(VENV)/bin/python" -m pip --disable-pip-version-check
PACKAGES = zoo training export profiling
# What tests can use on any machine; CUDA 13 and 12 do not share an environment.
EXTRAS = $(STACK),dev,openvino,ssl,tensorboard$(if $(filter v100,$(STACK)),,$(COMMA)trt-rtx)
COMMA = ,

# Another choice is another environment: setup starts anew where the stamp's name differs.
DEPENDENCIES = $(VENV)/.dependencies-$(PYTHON_VERSION)-$(STACK)-$(TORCH)
INSTALLED = $(VENV)/.installed
SOURCES := $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*' 2>/dev/null | sort)

# Tests see the installed package: no PYTHONPATH, and the working folder is not searched.
RUN = env -u PYTHONPATH PYTHONSAFEPATH=1 "$(VENV)/bin/python" -m
PYTEST = ZOO_TEST_INSTALLED=1 OMP_NUM_THREADS=1 $(RUN) pytest \
	-p no:benchmark -n $(WORKERS) --dist loadfile

.PHONY: demo test test-all test-exports test-ci-extra check bench bench-counts bench-compare \
	bench-train scaling memory-format artifacts int8 gpu zoo-speed short-training study report setup \
	clean FORCE
.DELETE_ON_ERROR:

demo: setup
	@rm -rf demo && mkdir demo
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" && cd demo && set -x \
	&& zoo-train $(DEMO_TRAIN) \
	&& zoo-export $(DEMO_EXPORT) \
	&& zoo-bench $(DEMO_BENCH) \
	&& zoo-report $(DEMO_REPORT)
	@echo && echo "The table above, the plot and the records: demo/report/index.html"

test: setup
	$(PYTEST) -m "not slow and not network" $(TESTS)

test-all: setup
	$(PYTEST) -m "not network" --ignore=$(EXPORTS) $(TESTS)
	$(MAKE) test-exports

# One file, so its tests and not files go to the workers; neighbours share a network.
test-exports: setup
	ZOO_TEST_REPORT=bench_results/test-exports.json $(PYTEST) --dist worksteal $(EXPORTS)

test-ci-extra: setup
	$(PYTEST) -m "$(CI_EXTRA)" $(CI_EXTRA_TESTS)

check: $(DEPENDENCIES)
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

bench: setup
	OMP_NUM_THREADS=1 $(RUN) pytest -p no:xdist tests/benchmarks

bench-counts: setup # parameters, MACs, nodes, bytes, graph breaks: the same on every machine
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" tests/benchmarks/counts.py

bench-compare: setup # a quarter of an hour; fails where a hot path is slower, not by chance
	"$(VENV)/bin/python" tests/benchmarks/bench_compare.py "$(BASE)"

bench-train: setup # half an hour alone on a machine with 2 cores, some minutes on one with a GPU
	env -u OMP_NUM_THREADS "$(VENV)/bin/python" tests/benchmarks/bench_train.py $(BENCH_TRAIN)

scaling: setup # a third of an hour alone on the machine
	"$(VENV)/bin/python" tests/benchmarks/scaling.py

memory-format: setup # an hour of one core; what has a record already is left
	"$(VENV)/bin/python" tests/benchmarks/memory_format.py

artifacts: setup # two hours alone on the machine; a network with a record is left
	"$(VENV)/bin/python" tests/benchmarks/artifacts.py

int8: setup # some hours of 2 cores; what has a record already is left
	"$(VENV)/bin/python" tests/benchmarks/int8_families.py

gpu: # whatever torch is here, without set-up; another call with the same EVIDENCE goes on
	PYTHONPATH="$(CURDIR)" "$(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON))" \
		tests/benchmarks/gpu_evidence.py --budget $(BUDGET) --slice $(SLICE) --out "$(EVIDENCE)" $(GPU)

zoo-speed: setup # a quarter of an hour alone on the machine; a network that fails is in the README
	rm -rf $(ZOO_SPEED)/records
	OMP_NUM_THREADS=1 "$(VENV)/bin/zoo-bench" --zoo $(ZOO_BENCH) --out $(ZOO_SPEED) || [ $$? -eq 1 ]
	OMP_NUM_THREADS=1 $(RUN) profiling.explain $(ZOO_SPEED)

short-training: setup # an hour of one core; what has a record already is left
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" tests/benchmarks/short_training.py

# Two shards side by side, 74 minutes of 2 cores; killed, it goes on. A job that cannot be done
# here, such as one with weights from the Hub, is listed with its reason.
study: setup
	$(MAKE) -j2 study-shard-1 study-shard-2
	"$(VENV)/bin/zoo-report" $(STUDY) --out $(STUDY)/report

study-shard-%:
	for list in $(STUDY_LISTS); do OMP_NUM_THREADS=1 "$(VENV)/bin/zoo-sweep" $$list $(SWEEP) \
		--out $(STUDY) --shard $*/2 || [ $$? -eq 1 ] || exit; done

report: setup
	"$(VENV)/bin/zoo-report" $(REPORT)

setup: $(INSTALLED)

clean: # leaves runs/ and the environment, which takes minutes to make
	rm -rf build cifar_zoo.egg-info demo .mypy_cache .pytest_cache .ruff_cache .benchmarks

# ---------------------------------------------------------------------------------------------
# A choice that cannot work ends in one line before anything is changed.
FOUND = $(if $(PYTHON_VERSION),$(PYTHON) is Python $(PYTHON_VERSION),$(PYTHON) was not found)
WANTED = cifar-zoo $(if $(filter v100,$(STACK)),on the v100 stack )needs one of $(PYTHONS)
CPU_INDEX = TORCH=cpu needs TORCH_CPU_INDEX=ADDRESS, the index of CPU wheels that PyTorch's install guide names

$(DEPENDENCIES): pyproject.toml $(PINS)
	$(if $(filter $(PYTHON_VERSION),$(PYTHONS)),,$(error $(FOUND), $(WANTED): name one with PYTHON=...))
	$(if $(filter pinned system cpu,$(TORCH)),,$(error TORCH=$(TORCH) is unknown: use pinned, system or cpu))
	$(if $(filter cpu gpu v100,$(STACK)),,$(error STACK=$(STACK) is unknown: use cpu, gpu or v100))
	$(if $(filter-out cpu,$(TORCH))$(TORCH_CPU_INDEX),,$(error $(CPU_INDEX)))
	@if ls "$(VENV)"/.dependencies-* >/dev/null 2>&1 && [ ! -e "$@" ]; then rm -rf "$(VENV)"; fi
	@echo "Setting up $(VENV): Python $(PYTHON_VERSION), stack $(STACK), torch $(TORCH)" \
		"(about 6 GB and some minutes the first time) ..."
	@$(PIP) --version >/dev/null 2>&1 \
	|| $(PYTHON) -m venv $(SYSTEM) "$(VENV)" >/dev/null 2>&1 \
	|| { $(PYTHON) -m venv --without-pip $(SYSTEM) "$(VENV)" \
	&& $(PYTHON) -m pip --python "$(VENV)/bin/python" install -qq pip; }
ifeq ($(TORCH),system)
	@grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' $(PINS) >"$(VENV)/pins.txt"
	@"$(VENV)/bin/python" -c 'import torch; from importlib.metadata import version; \
	print("torch==" + version("torch"))' 2>/dev/null >>"$(VENV)/pins.txt" \
	|| { echo "make: TORCH=system: $(PYTHON) cannot import torch; leave TORCH out to have it installed" >&2; exit 1; }
else
	@cp $(PINS) "$(VENV)/pins.txt"
endif
	@$(PIP) install -qq -c "$(VENV)/pins.txt" setuptools
ifeq ($(TORCH),cpu)
	@$(PIP) install -qq -c "$(VENV)/pins.txt" --index-url "$(TORCH_CPU_INDEX)" torch torchvision
endif
	@$(PIP) install -qq --no-build-isolation -c "$(VENV)/pins.txt" '.[$(EXTRAS)]'
	@touch "$@"

# The list of files is a prerequisite too, so that a removed file leaves the environment.
$(VENV)/.sources: FORCE $(DEPENDENCIES)
	@echo '$(SOURCES)' | cmp -s - "$@" || echo '$(SOURCES)' >"$@"

$(INSTALLED): $(VENV)/.sources $(SOURCES) cifar_zoo.py
	@rm -rf build # whatever lies there goes into the wheel
	@$(PIP) install -qq --no-build-isolation --no-deps --force-reinstall .
	@rm -rf build cifar_zoo.egg-info
	@touch "$@"
