# The CUDA library, by nvcc alone: CMake's CUDA language needs seconds to find out what is not needed here. It is compiled and
# linked on machines without a GPU, with any torch, CPU builds too.

set(PYFOLD_CUDA_REASON "")
set(PYFOLD_CUDA_BUILT 0)
set(PYFOLD_NVCC_VERSION "")
set(PYFOLD_GENCODE_NAMES "")

if(NOT PYFOLD_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "pyfold: PYFOLD_CUDA must be auto, on or off, got '${PYFOLD_CUDA}'")
endif()

if(PYFOLD_CUDA STREQUAL "off")
  set(PYFOLD_CUDA_REASON "built with PYFOLD_CUDA=off")
else()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import glob, sysconfig; print(';'.join(glob.glob(sysconfig.get_path('purelib') + '/nvidia/cu*/bin')))"
    OUTPUT_VARIABLE pip_toolkits OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(
    PYFOLD_NVCC nvcc
    PATHS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" /usr/local/cuda/bin ${pip_toolkits})
  if(NOT PYFOLD_NVCC)
    set(PYFOLD_CUDA_REASON "no nvcc at build time (looked in PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda and the pip packages)")
  else()
    execute_process(COMMAND ${PYFOLD_NVCC} --version OUTPUT_VARIABLE nvcc_output ERROR_VARIABLE nvcc_output
                    RESULT_VARIABLE nvcc_failed)
    # nvcc's dry run names the toolkit that it belongs to, also through a wrapper.
    execute_process(COMMAND ${PYFOLD_NVCC} --dryrun -c -x cu /dev/null ERROR_VARIABLE dryrun OUTPUT_QUIET)
    string(REGEX MATCH "#\\$ TOP=([^\n]+)" top "${dryrun}")
    get_filename_component(toolkit "${CMAKE_MATCH_1}" ABSOLUTE)
    string(REGEX MATCH "release ([0-9.]+)" release "${nvcc_output}")
    set(PYFOLD_NVCC_VERSION "${CMAKE_MATCH_1}")
    find_library(PYFOLD_CUDART cudart_static PATHS "${toolkit}/lib64" "${toolkit}/lib" "${toolkit}/targets/x86_64-linux/lib"
                 NO_DEFAULT_PATH)
    find_path(PYFOLD_CUDA_INCLUDE cuda_runtime.h PATHS "${toolkit}/include" "${toolkit}/targets/x86_64-linux/include"
              NO_DEFAULT_PATH)
    if(nvcc_failed OR NOT PYFOLD_NVCC_VERSION)
      set(PYFOLD_CUDA_REASON "${PYFOLD_NVCC} does not run")
    elseif(PYFOLD_NVCC_VERSION VERSION_LESS 12.0)
      set(PYFOLD_CUDA_REASON "nvcc ${PYFOLD_NVCC_VERSION} is older than 12.0")
    elseif(NOT PYFOLD_CUDART OR NOT PYFOLD_CUDA_INCLUDE)
      set(PYFOLD_CUDA_REASON "the CUDA runtime (libcudart_static.a and its headers) is missing beside ${PYFOLD_NVCC}")
    endif()
  endif()
  if(PYFOLD_CUDA_REASON STREQUAL "")
    set(PYFOLD_CUDA_BUILT 1)
  elseif(PYFOLD_CUDA STREQUAL "on")
    message(FATAL_ERROR "pyfold: PYFOLD_CUDA=on, but ${PYFOLD_CUDA_REASON}. Install the CUDA toolkit >= 12 or "
                        "'pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl', or set PYFOLD_CUDA=off.")
  else()
    message(STATUS "pyfold: without CUDA: ${PYFOLD_CUDA_REASON}")
  endif()
endif()

if(PYFOLD_CUDA_BUILT)
  set(archs "${PYFOLD_CUDA_ARCHS}")
  string(REPLACE "," ";" archs "${archs}")
  string(REPLACE " " ";" archs "${archs}")
  if(archs STREQUAL "all")
    set(archs 75 80 86 89 90 100 120)
  elseif(archs STREQUAL "")
    find_program(nvidia_smi nvidia-smi)
    if(nvidia_smi)
      execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE caps ERROR_QUIET)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" caps "${caps}")
      string(REPLACE "." "" archs "${caps}")
      list(REMOVE_DUPLICATES archs)
    endif()
    if(NOT archs)
      set(archs 80 90)
    endif()
  endif()
  # Machine code for each, and PTX of the newest for GPUs to come.
  set(gencode "")
  foreach(arch ${archs})
    list(APPEND gencode -gencode "arch=compute_${arch},code=sm_${arch}")
    list(APPEND PYFOLD_GENCODE_NAMES "sm_${arch}")
  endforeach()
  list(GET archs -1 newest)
  list(APPEND gencode -gencode "arch=compute_${newest},code=compute_${newest}")
  list(APPEND PYFOLD_GENCODE_NAMES "compute_${newest}")

  # --fmad=false: a contracted multiply-add would round once where the CPU rounds twice, and the bits would differ.
  set(nvcc_flags -std=c++20 -O3 --fmad=false -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra)
  set(objects "")
  file(GLOB_RECURSE device_headers CONFIGURE_DEPENDS csrc/core/*.h csrc/diffusion/*.h csrc/folds/*.h csrc/cuda/*.h
       csrc/cuda/*.cuh)
  foreach(family ${PYFOLD_FAMILIES})
    set(object "${CMAKE_BINARY_DIR}/cuda_${family}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${Python_EXECUTABLE} "${CMAKE_SOURCE_DIR}/cmake/nvcc.py" "${CMAKE_BINARY_DIR}/cuda_${family}.ptxas"
              ${PYFOLD_NVCC} ${nvcc_flags} ${gencode} --threads 2 "-I${CMAKE_SOURCE_DIR}/csrc" -c
              "${CMAKE_SOURCE_DIR}/csrc/cuda/${family}.cu" -o "${object}"
      DEPENDS "${CMAKE_SOURCE_DIR}/csrc/cuda/${family}.cu" "${CMAKE_SOURCE_DIR}/cmake/nvcc.py" ${device_headers}
      COMMENT "Compiling csrc/cuda/${family}.cu for ${PYFOLD_GENCODE_NAMES}"
      VERBATIM)
    list(APPEND objects "${object}")
  endforeach()
  add_library(pyfold_cuda SHARED csrc/torch/cuda.cpp
              ${objects})
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_compile_definitions(pyfold_cuda PRIVATE ${PYFOLD_STABLE_ABI})
  target_include_directories(pyfold_cuda SYSTEM PRIVATE "${PYFOLD_TORCH_DIR}/include" "${PYFOLD_CUDA_INCLUDE}")
  target_link_directories(pyfold_cuda PRIVATE "${PYFOLD_TORCH_DIR}/lib")
  # The stream comes from whichever torch is there: libtorch must be asked for, though no strong symbol needs it.
  target_link_libraries(pyfold_cuda PRIVATE pyfold_kernels ${PYFOLD_CUDART} dl rt pthread -Wl,--no-as-needed torch torch_cpu
                        -Wl,--exclude-libs,ALL)
  list(APPEND libraries pyfold_cuda)
  message(STATUS "pyfold: CUDA by nvcc ${PYFOLD_NVCC_VERSION} for ${PYFOLD_GENCODE_NAMES}")
endif()
