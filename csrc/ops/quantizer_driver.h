// Tensors in, tensors out, for quantizers with per-channel parameters, on the device that is compiled for.
#pragma once

#include "device.h"
#ifdef __CUDACC__
#include "cuda/engine/backward_driver.cuh"
#else
#include "cpu/engine/driver.h"
#endif
