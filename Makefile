# Everything sets itself up in .venv: Python >= 3.10 and a C++20 compiler are all that must be there.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := $(shell find csrc cmake build_backend -type f -not -name '*.json') CMakeLists.txt setup.py pyproject.toml
RUNS ?= runs/demo
# What 'make bench' writes; FULL=--full measures every size in every dtype.
RESULTS ?= runs/bench.json
FULL ?=

.PHONY: help build demo test test-all lint format bench floors gates gates-update sanitize fuzz test-cuda test-cuda-all clean kill-test

help:
	@echo "make demo    train a diffusion model and a GAN on handwritten digits (about 5 minutes)"
	@echo "make test    the tests, but for the slow ones; 'make test-all' runs those too"
	@echo "make lint    check style of Python and C++; 'make format' mends it"
	@echo "make bench   the benchmark tables, and RESULTS=$(RESULTS); FULL=--full for every size and dtype"
	@echo "make floors  whether the ops keep a wide margin against eager PyTorch (half a minute)"
	@echo "make gates   counts that say whether a kernel became slower; 'make gates-update' notes them anew"
	@echo "make sanitize  tests under AddressSanitizer and UBSan; 'make fuzz' makes 5,000 programs and 20,000 calls at random"
	@echo "make test-cuda  the CUDA kernels on a simulated GPU against the CPU; 'make test-cuda-all' takes everything, on two compilers' PTX"
	@echo "make kill-test  SIGKILL at 50 moments of each of three training runs, which must end with the uninterrupted bits"
	@echo "make build   compile, for working on pyfold in place"
	@echo "make clean   remove what make made"

.venv/torch.stamp:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Python >= 3.10 is needed; set PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || { echo "A C++20 compiler is needed, as in: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

.venv/tools.stamp: pyproject.toml | .venv/torch.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check "ruff>=0.17,<0.18" "clang-format>=23,<24"
	@touch $@

# In place: the package that is tested is this folder's, so an edited .py file counts at once, and .so files are built anew
# only where csrc changed. A slow test installs the wheel that users get.
.venv/pyfold.stamp: $(SOURCES) | .venv/torch.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,mnist,bench]"
	@# An oracle of the tests; its dependencies are gigabytes that the file in question never uses.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "k-diffusion==0.1.1.post1"
	@touch $@

build: .venv/pyfold.stamp

demo: build
	$(BIN)/python -m pyfold.train.demo --out $(RUNS)

test: build
	$(BIN)/python -m pytest -m "not slow"

test-all: build
	$(BIN)/python -m pytest

lint: .venv/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -type f -not -name '*.json')

format: .venv/tools.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -type f -not -name '*.json')

bench: build
	$(BIN)/python -m pytest benchmarks -q --benchmark-disable-gc --benchmark-columns=median,iqr,rounds --ratios-json $(RESULTS) $(FULL)

floors: build
	$(BIN)/python -m pyfold bench --floors

gates: build
	$(BIN)/python tools/gates.py

gates-update: build
	$(BIN)/python tools/gates.py --update

sanitize: build
	$(BIN)/python tools/sanitize.py

fuzz: build
	$(BIN)/python tests/fuzz.py programs --count 5000
	$(BIN)/python tests/fuzz.py calls --count 20000

kill-test: build
	$(BIN)/python tools/kill_runs.py --moments 50

# nvcc from PATH, or from the packages that cmake/cuda.cmake looks for.
build/gpu_test/built.stamp: $(SOURCES) | .venv/pyfold.stamp
	command -v nvcc > /dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "nvidia-cuda-nvcc>=13,<14" "nvidia-cuda-runtime>=13,<14" "nvidia-cuda-cccl>=13,<14"
	$(BIN)/pip install --quiet --disable-pip-version-check cmake ninja
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/gpu_test -G Ninja -DPYFOLD_CUDA=on -DPYFOLD_GPU_TEST=ON "-DPYFOLD_GPU_TEST_ARCHS=90;100" \
		-DPython_EXECUTABLE="$(abspath $(BIN)/python)"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/gpu_test --parallel --target pyfold_gpu_test
	@touch $@

test-cuda: build build/gpu_test/built.stamp
	PYFOLD_GPU_TEST="$(abspath build/gpu_test)" $(BIN)/python -m pytest tests/gpu
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/gpu/mutants.py build/gpu_mutants --ci

test-cuda-all: test-cuda
	for capability in 90 100; do \
		PYFOLD_GPU_TEST="$(abspath build/gpu_test)" PYFOLD_GPU_TEST_ALL=1 PYFOLD_GPU_TEST_CAPABILITY=$$capability $(BIN)/python -m pytest tests/gpu || exit 1; \
	done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/gpu/mutants.py build/gpu_mutants

clean:
	rm -rf .venv build pyfold/_lib pyfold/_C*.so pyfold.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
