// dequantize_codes on CUDA: x_hat = clamp(round(code_h / 2^D), lo, hi) * (scale * 2^D)
// (Huang et al., 2025, arXiv 2502.01199, eq. 2-3).
#include "../codes.h"
#include "quantizer.cuh"

namespace mbq {
namespace {

template <class Out>
__global__ void dequantize_codes_kernel(const __grid_constant__ Job<DequantizeCodes, int8_t, Out> job) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t task = job.walk.by_run ? thread / kWarpLanes : thread;
  if (task >= job.walk.tasks) return;
  Forward<DequantizeCodes, int8_t, Out> visit{job, job.walk.channel_of(task)};
  if (job.walk.by_run) {
    walk_run<kPack<int8_t, Out>, 4>(job.walk, task, threadIdx.x % kWarpLanes, kWarpLanes, job.aligned, visit);
  } else {
    walk_column(job.walk, task, visit);
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
  dispatch_pair(op, dtype, dtype, [&](auto storage, auto) {
    using Out = decltype(storage);
    Job<DequantizeCodes, int8_t, Out> job{Walk(layout.outer, layout.channels, layout.inner),
                                          on_16_bytes(codes) && on_16_bytes(out), 1};
    job.quantizer[0] = {code_range(op, from_bits, true), to_low, static_cast<float>(1 << to_low.shift)};
    job.scale[0] = static_cast<const float*>(scale.const_data_ptr());
    job.x = static_cast<const int8_t*>(codes.const_data_ptr());
    job.other[0] = static_cast<Out*>(out.mutable_data_ptr());
    launch(dequantize_codes_kernel<Out>, blocks_of(job.walk), job);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("dequantize_codes_forward", TORCH_BOX(&dequantize_codes_forward)); }

}  // namespace mbq
