// The kernels over logit_rows.cuh: a warp or a block takes a row, whose logits are read once from memory.
#pragma once

#include "kernels.cuh"
#include "launch.cuh"
#include "logit_rows.cuh"

namespace mbq::cuda {

constexpr int64_t kWarpRow = 4096;  // longer rows get a block

// Rows of a call. loss and kept are null where only the norms are wanted.
template <class T>
struct LogitJob {
  const T* x;
  const void* targets;
  bool wide_targets, aligned;
  int64_t rows, classes, ignore_index;
  float smoothing, uniform;
  float *loss, *el2n, *kept;  // kept: top and log_sum of every row
  const float* grad;
  T* grad_x;

  MBQ_HD int64_t target(int64_t row) const {
    return wide_targets ? static_cast<const int64_t*>(targets)[row] : static_cast<const int32_t*>(targets)[row];
  }
};

// The sum over the lanes of a row in a fixed tree, to all of them.
__device__ __forceinline__ RowSums<float> warp_merge(RowSums<float> sums) {
#pragma unroll
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) {
    RowSums<float> other;
    other.max = __shfl_xor_sync(kFullWarp, sums.max, offset);
    other.sum = __shfl_xor_sync(kFullWarp, sums.sum, offset);
    other.squares = __shfl_xor_sync(kFullWarp, sums.squares, offset);
    sums.merge(other);
  }
  return sums;
}

template <int lanes>
__device__ __forceinline__ RowSums<float> row_merge(RowSums<float> sums) {
  sums = warp_merge(sums);
  if constexpr (lanes > kWarpLanes) {
    __shared__ RowSums<float> warps[kThreads / kWarpLanes];
    if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = sums;
    __syncthreads();
    sums = warps[0];
    for (int w = 1; w < kThreads / kWarpLanes; ++w) sums.merge(warps[w]);
    __syncthreads();
  }
  return sums;
}

template <int lanes>
__device__ __forceinline__ float row_sum(float value) {
  double total = warp_sum(value);
  if constexpr (lanes > kWarpLanes) {
    __shared__ double warps[kThreads / kWarpLanes];
    if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = total;
    __syncthreads();
    total = 0.0;
    for (int w = 0; w < kThreads / kWarpLanes; ++w) total += warps[w];
    __syncthreads();
  }
  return static_cast<float>(total);
}

// smooth: the targets may be smoothed, which asks for a second look at the row.
template <class T, bool smooth, int lanes>
__global__ void logit_rows_kernel(const __grid_constant__ LogitJob<T> job) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  if (row >= job.rows) return;  // whole warps, or whole blocks
  const int lane = threadIdx.x % lanes;
  const int64_t target = job.target(row), begin = row * job.classes;
  const bool valid = 0 <= target && target < job.classes, counts = target != job.ignore_index;
  const int64_t at = begin + (valid ? target : 0);
  AddToRow<T, smooth> visit{job.x, at};
  walk_span<kPack<T>, 2>(begin, job.classes, lane, lanes, job.aligned, visit);
  const RowSums<float> sums = row_merge<lanes>(visit.sums);
  const float logit = static_cast<float>(job.x[at]);
  RowResult<float> result = row_result(sums, logit);
  if (smooth && job.smoothing > 0.0f) {
    const float mean = row_sum<lanes>(visit.plain) / static_cast<float>(job.classes);
    const RowGaps gaps{result.top, result.log_sum, job.smoothing, job.uniform};
    AddGaps<T> again{job.x, at, gaps};
    walk_span<kPack<T>, 2>(begin, job.classes, lane, lanes, job.aligned, again);
    const float of_target = target_gap(logit, gaps.top, gaps.log_sum, gaps.smoothing, gaps.uniform);
    result.loss = smoothed_loss(result, mean, job.smoothing);
    result.el2n = sqrtf(row_sum<lanes>(again.squares) + of_target * of_target);
  }
  if (lane != 0) return;
  const float missing = NAN;  // of a target that is no class
  job.el2n[row] = !counts ? 0.0f : valid ? result.el2n : missing;
  if (job.loss == nullptr) return;
  job.loss[row] = !counts ? 0.0f : valid ? result.loss : missing;
  job.kept[2 * row] = result.top;
  job.kept[2 * row + 1] = valid ? result.log_sum : missing;
}

template <class T, int lanes>
__global__ void logit_gradient_kernel(const __grid_constant__ LogitJob<T> job) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  if (row >= job.rows) return;
  const int64_t target = job.target(row), begin = row * job.classes;
  const int64_t at = begin + (0 <= target && target < job.classes ? target : 0);
  const RowGaps gaps{job.kept[2 * row], job.kept[2 * row + 1], job.smoothing, job.uniform};
  const float of_target =
      target_gap(static_cast<float>(job.x[at]), gaps.top, gaps.log_sum, gaps.smoothing, gaps.uniform);
  const WriteGaps<T> visit{job.x, job.grad_x, at, gaps, job.grad[row], of_target, target != job.ignore_index};
  walk_span<kPack<T>, 2>(begin, job.classes, threadIdx.x % lanes, lanes, job.aligned, visit);
}

// A job without its results, of (N, C) logits on CUDA.
template <class T>
LogitJob<T> logit_job(const Tensor& logits, const Tensor& targets, int64_t ignore_index, double smoothing) {
  LogitJob<T> job{static_cast<const T*>(logits.const_data_ptr()), targets.const_data_ptr()};
  job.wide_targets = targets.scalar_type() == ScalarType::Long;
  job.aligned = reinterpret_cast<uintptr_t>(job.x) % 16 == 0;
  job.rows = logits.size(0);
  job.classes = logits.size(1);
  job.ignore_index = ignore_index;
  job.smoothing = static_cast<float>(smoothing);
  job.uniform = static_cast<float>(smoothing / static_cast<double>(job.classes));
  return job;
}

template <class T>
void launch_logit_rows(const Launch& launch, void (*by_warp)(LogitJob<T>), void (*by_block)(LogitJob<T>),
                       const LogitJob<T>& job) {
  constexpr int rows_a_block = kThreads / kWarpLanes;
  if (job.classes <= kWarpRow) {
    launch(by_warp, (job.rows + rows_a_block - 1) / rows_a_block, job);
  } else {
    launch(by_block, job.rows, job);
  }
}

inline void check_logits(const char* op, const Tensor& logits, const Tensor& targets) {
  check(logits.dim() == 2 && logits.size(1) > 0 && targets.dim() == 1 && targets.size(0) == logits.size(0) &&
            same_device(logits, targets) &&
            (targets.scalar_type() == ScalarType::Long || targets.scalar_type() == ScalarType::Int),
        op, ": logits must be (N, C), targets (N,) int64 or int32 on their device");
  check(logits.scalar_type() != ScalarType::Double, op,
        ": float64 is for the CPU; CUDA takes float32, bfloat16 and float16");
}

// Calls body with a value of the storage type of the logits.
template <class Body>
void dispatch_logits(const char* op, const Tensor& logits, const Body& body) {
  dispatch_floats(op, logits.scalar_type(), [&](auto storage) {
    if constexpr (!std::is_same_v<decltype(storage), double>) body(storage);
  });
}

}  // namespace mbq::cuda
