#!/usr/bin/env bash
# Everything that only a machine with a GPU can show: builds in place for its GPU, runs the test matrix on CPU and CUDA, compute-sanitizer over the
# kernels, bits, graphs, streams, devices, torch.compile and the benchmarks; results with their provenance go to benchmarks/results/ (or the folder
# given). Needs torch, pytest, pybind11, CMake, ninja and nvcc in the environment; nothing is downloaded.
#
#   tools/gpu_check.sh [FOLDER]
#   tools/gpu_check.sh --simulated    without a GPU: the kernels on the simulated one (make test-cuda), and a list of what needs a card
set -euo pipefail
cd "$(dirname "$0")/.."

# What follows needs a card, section by section; --simulated lists it.
sections=(
  "tests: the matrix, noise, steps, folds and errors on CUDA tensors"
  "compute-sanitizer: memcheck, initcheck and racecheck"
  "bits: CPU against CUDA"
  "graphs: a step captured once and replayed with other seeds"
  "streams: side streams, and cuda:1 while cuda:0 is current"
  "compile: torch.compile(mode='reduce-overhead')"
  "benchmarks: against torch.compile, torch.randn and copy"
)

if [ "${1:-}" = --simulated ]; then
  echo "commit: $(git rev-parse HEAD 2> /dev/null || echo unknown)"
  make test-cuda
  printf 'simulated: %s\n' "the matrix, noise, steps and folds, bit for bit with the CPU" "what is refused before a launch" \
    "bounds, alignment, races, barriers and launch limits, as compute-sanitizer looks for" \
    "launches recorded once and replayed with other seeds, streams and positions" "planted faults" "instructions and sectors (executed.json)"
  printf 'needs a card, not run: %s\n' "${sections[@]}"
  exit
fi

out="${1:-benchmarks/results}"
mkdir -p "$out"
name="$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '__')"
report="$out/$(date -u +%Y-%m-%d)-$name.txt"

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cmake -S . -B build/gpu -G Ninja -DPYFOLD_CUDA=on -DPython_EXECUTABLE="$(command -v python3)" > /dev/null
cmake --build build/gpu --parallel > /dev/null

{
  echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "commit: $(git rev-parse HEAD 2> /dev/null || echo unknown)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  python3 -c "import pyfold; pyfold.show_config()" | grep -v "^loaded"
  echo "== ${sections[0]}"
  python3 -m pytest -q -p no:cacheprovider tests/test_ops.py tests/test_noise.py tests/test_affine_step.py tests/test_fold.py tests/test_errors.py \
    -m "not slow" 2>&1 | tail -n 15
  echo "== ${sections[1]}"
  for tool in memcheck initcheck racecheck; do
    if command -v compute-sanitizer > /dev/null; then
      echo "-- $tool"
      compute-sanitizer --tool "$tool" --error-exitcode 1 python3 -m pytest -q -p no:cacheprovider tests/test_affine_step.py tests/test_fold.py -k "cuda" \
        2>&1 | tail -n 4
    else
      echo "compute-sanitizer is not installed"
    fi
  done
  echo "== ${sections[2]}"
  python3 - << 'PY'
import torch
import pyfold
from pyfold import diffusion

seeds = torch.arange(8)
plan = diffusion.ddpm(diffusion.vp_linear(), 20)
for name, run in {
    "randn 8x3x256x256": lambda d: pyfold.randn(seeds.to(d), (3, 256, 256)),
    "20 DDPM steps": lambda d: diffusion.sample(lambda x, t: 0.5 * x, plan, (3, 64, 64), seeds, device=d),
}.items():
    equal = torch.equal(run("cpu"), run("cuda").cpu())
    print(f"{name}: {'equal' if equal else 'DIFFERENT'}")
PY
  for section in 3 4 5; do
    echo "== ${sections[$section]}"
    python3 tools/gpu_check.py "$section"
  done
  echo "== ${sections[6]}"
  python3 -m pyfold bench --device cuda
} 2>&1 | tee "$report"
