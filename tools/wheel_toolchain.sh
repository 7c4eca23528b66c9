#!/usr/bin/env bash
# What a wheel is built with, in cibuildwheel's container (before-all of pyproject.toml): torch's headers and, on x86_64, nvcc, both
# from PyPI, in /opt/pyfold.
set -euo pipefail
python=/opt/python/cp311-cp311/bin/python
# The oldest torch that is supported: its headers are the stable ABI that every later one has.
"$python" -m pip install --quiet --no-deps --target /opt/pyfold "torch==2.10.0"
if [ "$(uname -m)" = x86_64 ]; then
  "$python" -m pip install --quiet --target /opt/pyfold "nvidia-cuda-nvcc>=13,<14" "nvidia-cuda-runtime>=13,<14" "nvidia-cuda-cccl>=13,<14"
  ln -sfn /opt/pyfold/nvidia/cu13 /opt/pyfold/cuda
fi
