// switch_bits on CUDA: code_l = clamp(round(code_h / 2^D), lo, hi), D = from_bits - to_bits
// (Huang et al., 2025, arXiv 2502.01199, eq. 2).
#include "arguments/codes.h"
#include "cuda/engine/codes.cuh"
#include "cuda/engine/driver.cuh"

namespace mbq::cuda {
namespace {

__global__ void switch_bits_kernel(const Walk walk, const bool aligned, const SwitchCodes visit) {
  const int64_t task = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpLanes;
  if (task < walk.tasks) walk_run<16, 4>(walk, task, threadIdx.x % kWarpLanes, kWarpLanes, aligned, visit);
}

Tensor switch_bits_forward(const Tensor& given_codes, int64_t from_bits, int64_t to_bits, bool half_even) {
  const char* op = "switch_bits";
  check_codes(op, given_codes, true);
  const Launch launch(op, given_codes);
  const Tensor codes = dense(given_codes), out = allocate_like(codes);
  const SwitchCodes visit{static_cast<const int8_t*>(codes.const_data_ptr()),
                          static_cast<int8_t*>(out.mutable_data_ptr()), code_range(op, from_bits, true),
                          checked_switch(op, from_bits, to_bits, half_even)};
  const Walk walk(1, 1, codes.numel());
  launch(switch_bits_kernel, blocks_of(walk), walk, on_16_bytes(codes) && on_16_bytes(out), visit);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("switch_bits_forward", TORCH_BOX(&switch_bits_forward)); }

}  // namespace mbq::cuda
