@{ header("#") }@
#     cmake -S . -B build -DCMAKE_BUILD_TYPE=Release \
#         -DCMAKE_PREFIX_PATH=$(python -c 'import executorch; print(list(executorch.__path__)[0])')
#     cmake --build build
#
# On a computer it links what the executorch wheel ships: the runtime, XNNPACK and the kernels. For a phone, build
# ExecuTorch with the phone's toolchain and name that folder instead.

cmake_minimum_required(VERSION 3.19)
project(predict LANGUAGES CXX)

find_package(executorch REQUIRED)

add_executable(predict main.cpp)
target_compile_features(predict PRIVATE cxx_std_17)
target_include_directories(predict SYSTEM PRIVATE ${EXECUTORCH_INCLUDE_DIRS})
target_compile_definitions(predict PRIVATE ${EXECUTORCH_COMPILE_DEFINITIONS})
target_link_libraries(predict PRIVATE ${EXECUTORCH_LIBRARIES})
set_target_properties(predict PROPERTIES BUILD_RPATH "${EXECUTORCH_RUNTIME_LIBRARY_DIR}")
