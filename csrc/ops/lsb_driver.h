// Tensors in, tensors out, for round_clamp and its least significant bits, on the device that is compiled for.
#pragma once

#include "device.h"
#ifdef __CUDACC__
#include "cuda/engine/lsb_driver.cuh"
#else
#include "cpu/engine/lsb_driver.h"
#endif
