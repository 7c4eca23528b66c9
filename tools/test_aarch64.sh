#!/usr/bin/env bash
# csrc on aarch64: Debian's cross compiler compiles all of it, and qemu runs the C++ tests and a digest of what every kernel of
# noise, steps and folds gives, which must be this machine's, bit for bit. Installs what is missing where it may (root, apt); where
# it may not, that is said, and with CI=true it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
begin=$SECONDS
missing=()
command -v aarch64-linux-gnu-g++ > /dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 > /dev/null || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
  else
    echo "aarch64: not tested, because ${missing[*]} is missing; on Debian: apt-get install ${missing[*]}"
    [ "${CI:-}" != true ] || exit 1
    exit 0
  fi
fi
"$python" -m pip install --quiet --disable-pip-version-check "pybind11>=2.12" "cmake>=3.18" ninja
environment=$(cd "$(dirname "$python")" && pwd)
export PATH=$environment:$PATH
build=build/aarch64
headers=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')  # the same text for every processor
cmake -S . -B $build -G Ninja -DPYFOLD_CUDA=off -DPYFOLD_BUILD_TESTS=ON "-DPython_EXECUTABLE=$environment/python" "-DPython_INCLUDE_DIR=$headers" \
  "-DPYFOLD_OUTPUT=$PWD/$build/pyfold" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ > /dev/null
# Linking the ops would take a torch for aarch64, so they and the Python module are compiled and no more.
objects=()
for source in csrc/torch/schemas.cpp csrc/torch/cpu.cpp; do objects+=("CMakeFiles/pyfold_ops.dir/$source.o"); done
for source in csrc/python/module.cpp csrc/python/call.cpp; do objects+=("CMakeFiles/pyfold_module.dir/$source.o"); done
cmake --build $build --parallel "${MAX_JOBS:-$(nproc)}" --target pyfold_tests pyfold_driver "${objects[@]}" > $build/log \
  || { tail -30 $build/log; exit 1; }
# Beside the kernels that are in use here.
${CXX:-c++} -std=c++20 -O2 -Icsrc csrc/bench/driver.cpp -o $build/native_driver -Lpyfold/_lib -lpyfold_kernels "-Wl,-rpath,$PWD/pyfold/_lib"
emulated=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
"${emulated[@]}" $build/pyfold_tests
# More than a tile and not a whole number of them.
elements=9984
"${emulated[@]}" $build/pyfold_driver all neon $elements digest > $build/digest
$build/native_driver all baseline $elements digest > $build/native_digest
diff $build/native_digest $build/digest || { echo "aarch64: these digests differ (<: this machine, >: aarch64)"; exit 1; }
echo "aarch64: $(wc -l < $build/digest) digests of kernels equal this machine's, in $((SECONDS - begin)) s"
