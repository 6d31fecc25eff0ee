// dequantize_codes on CUDA: x_hat = clamp(round(code_h / 2^D), lo, hi) * 2^D * scale
// (Huang et al., 2025, arXiv 2502.01199, eq. 2-3).
#include "arguments/codes.h"
#include "cuda/engine/codes.cuh"
#include "cuda/engine/driver.cuh"

namespace mbq::cuda {
namespace {

template <class Out>
__global__ void dequantize_codes_kernel(const Walk walk, const bool aligned, const float* scale,
                                        const DequantizeVisit<Out> given) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t task = walk.by_run ? thread / kWarpLanes : thread;
  if (task >= walk.tasks) return;
  DequantizeVisit<Out> visit = given;
  visit.scale = scale[walk.channel_of(task)];
  if (walk.by_run) {
    walk_run<kPack<Out>, 8>(walk, task, threadIdx.x % kWarpLanes, kWarpLanes, aligned, visit);
  } else {
    walk_column(walk, task, visit);
  }
}

Tensor dequantize_codes_forward(const Tensor& given_codes, const Tensor& given_scale, int64_t from_bits,
                                int64_t to_bits, std::optional<int64_t> axis, ScalarType dtype, bool half_even) {
  const char* op = "dequantize_codes";
  check_codes(op, given_codes, true);
  const Switch to_low = checked_switch(op, from_bits, to_bits, half_even);
  const Launch launch(op, given_codes);
  const Tensor codes = dense(given_codes), scale = make_contiguous(given_scale), out = allocate_like(codes, dtype);
  const Layout layout = layout_of(op, codes, axis);
  check(scale.numel() == layout.channels && scale.scalar_type() == ScalarType::Float && same_device(scale, codes), op,
        ": scale must have ", layout.channels, " elements, codes' device, and be float32");
  dispatch_pair<true>(op, dtype, dtype, [&](auto storage, auto) {
    using Out = decltype(storage);
    const Walk walk(layout.outer, layout.channels, layout.inner);
    const DequantizeVisit<Out> visit{static_cast<const int8_t*>(codes.const_data_ptr()),
                                     static_cast<Out*>(out.mutable_data_ptr()),
                                     {code_range(op, from_bits, true), to_low, static_cast<float>(1 << to_low.shift)},
                                     0.0f};
    launch(dequantize_codes_kernel<Out>, blocks_of(walk), walk, on_16_bytes(codes) && on_16_bytes(out),
           static_cast<const float*>(scale.const_data_ptr()), visit);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("dequantize_codes_forward", TORCH_BOX(&dequantize_codes_forward)); }

}  // namespace mbq::cuda
