#!/usr/bin/env bash
# The same library files under several releases of torch: the stable ABI's promise, tried. Each release goes into an environment
# of its own in build/torch_matrix with what the tests need (pip's torch brings CUDA: about 5 GB, deleted afterwards), and the
# tests run there on the libraries that are compiled in this source tree, for the Python that compiled them. tests/test_build.py
# reads the build itself, so it stays with the torch that made it.
#
#     tools/torch_matrix.sh                                 torch 2.10.0, 2.12.1 and 2.15.0, every test but the slow ones
#     tools/torch_matrix.sh 2.15.0 -- tests/test_ops.py     some releases, some tests
#
# KEEP=1 keeps the environments; PYTHON names the Python (default: that of .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
releases=() tests=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do releases+=("$1"); shift; done
[ $# -eq 0 ] || shift
tests=("$@")
[ ${#releases[@]} -gt 0 ] || releases=(2.10.0 2.12.1 2.15.0)
[ ${#tests[@]} -gt 0 ] || tests=(tests --ignore=tests/gpu --ignore=tests/test_build.py --ignore=tests/test_digests.py -m "not slow")
needs=("pytest>=8" "numpy>=1.26" "scipy>=1.11" "hypothesis>=6.100" "pillow>=10" "safetensors>=0.4" "tqdm>=4.60" "tensorboard>=2.14"
  "scikit-learn>=1.3" "shtab>=1.7" "matplotlib>=3.8" "pybind11>=2.12" "diffusers>=0.42,<0.43" "transformers>=4.57" "torchsde>=0.2.6")
failed=()
for release in "${releases[@]}"; do
  environment=build/torch_matrix/$release
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check "torch==$release" "${needs[@]}"
  # An oracle of the tests; its dependencies are gigabytes that the file in question never uses.
  "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps "k-diffusion==0.1.1.post1"
  "$environment/bin/python" -c "import torch, pyfold; pyfold.show_config(); assert torch.__version__.startswith('$release'), torch.__version__"
  "$environment/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" || failed+=("$release")
  [ -n "${KEEP:-}" ] || rm -rf "$environment"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed under torch ${failed[*]}"; exit 1; }
echo "the same libraries hold under torch ${releases[*]}"
