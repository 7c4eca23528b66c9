# The CUDA kernels on a CPU, for tests: libpyfold_gpu.so, a CUDA runtime that executes PTX (csrc/test/gpu), and
# libpyfold_gpu_test.so, the project's kernels and launchers and csrc/torch's CUDA registrations on it, for CPU tensors.

option(PYFOLD_GPU_TEST "The CUDA kernels on a simulated GPU; needs nvcc" OFF)
set(PYFOLD_GPU_TEST_ARCHS 90 CACHE STRING "Compute capabilities whose PTX is tested, as in '90;100'")
set(PYFOLD_GPU_TEST_SOURCES "${CMAKE_SOURCE_DIR}/csrc" CACHE PATH "The csrc that is tested: a copy, where faults are planted in it")

if(PYFOLD_GPU_TEST)
  if(NOT PYFOLD_CUDA_BUILT)
    message(FATAL_ERROR "pyfold: PYFOLD_GPU_TEST needs CUDA: ${PYFOLD_CUDA_REASON}")
  endif()
  file(GLOB simulator_sources CONFIGURE_DEPENDS csrc/test/gpu/*.cpp)
  list(FILTER simulator_sources EXCLUDE REGEX "/torch\\.cpp$")
  add_library(pyfold_gpu SHARED EXCLUDE_FROM_ALL ${simulator_sources})
  # Runs where it is compiled. No contraction: it executes roundings one by one.
  target_compile_options(pyfold_gpu PRIVATE -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math)

  set(gpu_gencode "")
  foreach(arch ${PYFOLD_GPU_TEST_ARCHS})
    list(APPEND gpu_gencode -gencode "arch=compute_${arch},code=compute_${arch}")
  endforeach()
  set(gpu_objects "")
  foreach(family ${PYFOLD_FAMILIES})
    set(object "${CMAKE_BINARY_DIR}/gpu_test_${family}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${PYFOLD_NVCC} ${nvcc_flags} -lineinfo --compress-mode=none ${gpu_gencode} --threads 2
              "-I${PYFOLD_GPU_TEST_SOURCES}" -MD -MF "${object}.d" -c "${PYFOLD_GPU_TEST_SOURCES}/cuda/${family}.cu" -o "${object}"
      DEPENDS "${PYFOLD_GPU_TEST_SOURCES}/cuda/${family}.cu"
      DEPFILE "${object}.d"
      COMMENT "Compiling cuda/${family}.cu to PTX for compute_${PYFOLD_GPU_TEST_ARCHS}"
      VERBATIM)
    list(APPEND gpu_objects "${object}")
  endforeach()
  set_source_files_properties(${gpu_objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)

  get_target_property(gpu_registrations pyfold_cuda SOURCES)
  list(FILTER gpu_registrations INCLUDE REGEX "csrc/torch/.*\\.cpp$")
  list(TRANSFORM gpu_registrations REPLACE "^csrc" "${PYFOLD_GPU_TEST_SOURCES}")
  list(APPEND gpu_registrations "${PYFOLD_GPU_TEST_SOURCES}/torch/schemas.cpp")
  add_library(pyfold_gpu_test SHARED EXCLUDE_FROM_ALL ${gpu_registrations} csrc/test/gpu/torch.cpp ${gpu_objects})
  set_source_files_properties(${gpu_registrations} PROPERTIES COMPILE_OPTIONS "-include;test/gpu/on_cpu.h"
                              COMPILE_DEFINITIONS "${PYFOLD_STABLE_ABI}")
  # The allocator is a class of torch's C++ interface, which the stable one hides.
  set_source_files_properties(csrc/test/gpu/torch.cpp PROPERTIES COMPILE_DEFINITIONS "")
  target_include_directories(pyfold_gpu_test BEFORE PRIVATE "${PYFOLD_GPU_TEST_SOURCES}")
  target_include_directories(pyfold_gpu_test SYSTEM PRIVATE "${PYFOLD_TORCH_DIR}/include" "${PYFOLD_CUDA_INCLUDE}")
  target_link_directories(pyfold_gpu_test PRIVATE "${PYFOLD_TORCH_DIR}/lib")
  target_link_libraries(pyfold_gpu_test PRIVATE pyfold_gpu pyfold_kernels -Wl,-Bsymbolic -Wl,--no-as-needed torch torch_cpu c10)
endif()
