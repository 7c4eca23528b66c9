#!/usr/bin/env bash
# Everything that only a machine with a GPU can show: builds in place for its GPU, runs the whole test matrix on CPU and CUDA, compute-sanitizer over the
# kernels, and the benchmarks; results with their provenance go to benchmarks/results/ (or the folder given). Needs torch, pytest, pybind11, CMake,
# ninja and nvcc in the environment; nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
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
  echo "== tests"
  python3 -m pytest -q -p no:cacheprovider tests/test_ops.py tests/test_noise.py tests/test_affine_step.py tests/test_fold.py tests/test_errors.py \
    -m "not slow" 2>&1 | tail -n 15
  echo "== compute-sanitizer"
  for tool in memcheck initcheck racecheck; do
    if command -v compute-sanitizer > /dev/null; then
      echo "-- $tool"
      compute-sanitizer --tool "$tool" --error-exitcode 1 python3 -m pytest -q -p no:cacheprovider tests/test_affine_step.py tests/test_fold.py -k "cuda" \
        2>&1 | tail -n 4
    else
      echo "compute-sanitizer is not installed"
    fi
  done
  echo "== bits: CPU against CUDA"
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
} 2>&1 | tee "$report"
