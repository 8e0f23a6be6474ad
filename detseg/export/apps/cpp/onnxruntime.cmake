@{ header("#") }@
#     cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DONNXRUNTIME=DIR
#     cmake --build build
#
# DIR is a release of ONNX Runtime for C and C++, unpacked: include/onnxruntime_cxx_api.h and lib/ lie in it.

cmake_minimum_required(VERSION 3.19)
project(predict LANGUAGES CXX)

set(ONNXRUNTIME "" CACHE PATH "a release of ONNX Runtime, unpacked")
find_path(ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h REQUIRED
          HINTS ${ONNXRUNTIME}/include PATH_SUFFIXES onnxruntime/core/session onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime REQUIRED HINTS ${ONNXRUNTIME}/lib)

add_executable(predict main.cpp)
target_compile_features(predict PRIVATE cxx_std_17)
target_include_directories(predict SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE})
target_link_libraries(predict PRIVATE ${ONNXRUNTIME_LIBRARY})
