# What every library of this repository is compiled with. The arithmetic is exact only without contraction.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(MBQ_CPP_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra
  -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
