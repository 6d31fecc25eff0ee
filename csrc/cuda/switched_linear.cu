// switched_linear on CUDA: y = x @ x_hat.T + bias, x_hat = clamp(round(code / 2^D), lo, hi) * scale * 2^D, straight
// from int8 codes or bit planes (Huang et al., 2025, arXiv 2502.01199, eq. 1-3), and the gradient of x. A warp has two
// rows of the weight, in plain float32 products; for several rows of 16-bit x a block has 16, on tensor cores.
#include "arguments/codes.h"
#include "cuda/engine/code_tiles.cuh"
#include "cuda/engine/kernels.cuh"
#include "cuda/engine/launch.cuh"

namespace mbq::cuda {
namespace {

constexpr const char* kOp = "switched_linear";
constexpr int kShare = 2;  // rows of the weight that share a read of x
constexpr int kBatch = 4;  // rows of x that share a read of the weight, where there are several

template <class T>
struct Linear : RowProducts<T> {  // x, or the gradient
  const float* scale;
  const float* bias;  // or null
  bool one_scale;
  T* y;

  __device__ T result(int64_t row, double sum) const {
    const double step = static_cast<double>(scale[one_scale ? 0 : row]) * this->weight.step;
    return static_cast<T>(static_cast<float>(sum * step + (bias ? bias[row] : 0.0f)));
  }
};

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// y[m][row] for a warp's kShare rows and `batch` rows of x. Warps side by side share rows of the weight, which then
// come once from memory.
template <int batch, bool of_planes, class T>
__global__ void __launch_bounds__(kThreads, 2) switched_linear_rows(const __grid_constant__ Linear<T> job) {
  const int64_t warp = thread_index() / kWarpLanes, parts = (job.count + batch - 1) / batch;
  const int64_t share = quotient(warp, parts), row = share * kShare, first = (warp - share * parts) * batch;
  const int lane = threadIdx.x % kWarpLanes;
  if (row >= job.weight.rows) return;  // a whole warp: the shuffles below are full
  float sums[kShare * batch] = {};
  job.template dot<kShare, batch, of_planes>(row, first, lane, kWarpLanes, sums);
#pragma unroll
  for (int r = 0; r < kShare; ++r) {
    if (row + r >= job.weight.rows) break;
#pragma unroll
    for (int m = 0; m < batch; ++m) {
      const double total = warp_sum(sums[r * batch + m]);
      if (lane == 0 && first + m < job.count)
        job.y[(first + m) * job.weight.rows + row + r] = job.result(row + r, total);
    }
  }
}

// The same for a block's 16 rows and 8 rows of x, on tensor cores: its warps share the columns, and their sums are
// added in order.
template <bool of_planes, class T>
__global__ void __launch_bounds__(kThreads, 2) switched_linear_tiles(const __grid_constant__ Linear<T> job) {
  constexpr int warps = kThreads / kWarpLanes;
  __shared__ float parts[warps][kWarpLanes][4];
  const int64_t groups = (job.count + kTileBatch - 1) / kTileBatch, tile = quotient(blockIdx.x, groups);
  const int64_t row = tile * kTileRows, first = (blockIdx.x - tile * groups) * kTileBatch;
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const TileProducts<of_planes, T> products{job, row, first, lane};
  float sums[4] = {};
  for (int64_t k = warp * kTileColumns; k < job.weight.columns; k += warps * kTileColumns) {
    Fragments fragments;
    products.read(k, fragments);
#pragma unroll
    for (int w = 0; w < kTileSteps; ++w) multiply<T>(fragments.codes[w], fragments.x[w], sums);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[warp][lane][i] = sums[i];
  __syncthreads();
  const int n = threadIdx.x % kTileRows, m = threadIdx.x / kTileRows;
  if (m >= kTileBatch || row + n >= job.weight.rows || first + m >= job.count) return;
  double total = 0.0;
#pragma unroll
  for (int w = 0; w < warps; ++w) total += parts[w][n % 8 * 4 + m / 2][n / 8 * 2 + m % 2];
  job.y[(first + m) * job.weight.rows + row + n] = job.result(row + n, total);
}

template <class T>
__global__ void switched_linear_columns(const __grid_constant__ Linear<T> job) {
  const int64_t column = thread_index() % job.weight.columns, first = thread_index() / job.weight.columns * kBatch;
  if (first < job.count)
    dot_column<kBatch>(job.weight, column, job.scale, job.one_scale, job.x, first, job.count, job.y);
}

StoredRows stored_rows(const Tensor& store, const Tensor& x, int64_t columns, int64_t high_bits, int64_t bits,
                       bool half_up) {
  check(same_device(store, x), kOp, ": store must be on the device of x or its gradient");
  const Switch lower = checked_switch(kOp, high_bits, bits, !half_up);
  const bool codes = store.scalar_type() == ScalarType::Char && store.dim() == 2;
  const bool planes = store.scalar_type() == ScalarType::Byte && store.dim() == 3;
  check(codes || planes, kOp, ": store must be int8 codes or uint8 planes");
  const int64_t read = planes_read(high_bits, bits, !half_up);
  const int64_t row_bytes = codes ? columns : (columns + 7) / 8;
  check(columns >= 0 && store.size(store.dim() - 1) == row_bytes, kOp, ": store must have rows of ", row_bytes);
  check(codes || store.size(0) >= read, kOp, ": store must have ", read, " planes");
  const auto* data = static_cast<const uint8_t*>(store.const_data_ptr());
  const int64_t unit = codes ? 16 : 4;
  return {data,
          store.size(store.dim() - 2),
          columns,
          row_bytes,
          codes ? 0 : static_cast<int>(read),
          static_cast<int>(high_bits),
          static_cast<int>(bits),
          lower,
          reinterpret_cast<uintptr_t>(data) % unit == 0 && row_bytes % unit == 0};
}

template <class T>
Linear<T> job_of(const StoredRows& weight, const Tensor& scale, const Tensor* bias, const Tensor& x, const Tensor& y) {
  check(same_device(scale, x) && (!bias || same_device(*bias, x)), kOp, ": scale and bias must be on x's device");
  check(scale.scalar_type() == ScalarType::Float && (scale.numel() == 1 || scale.numel() == weight.rows), kOp,
        ": scale must be float32 with 1 or ", weight.rows, " elements");
  check(!bias || (bias->scalar_type() == ScalarType::Float && bias->numel() == weight.rows), kOp,
        ": bias must be float32 with ", weight.rows, " elements");
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && x.size(1) * sizeof(T) % 16 == 0;
  return {{weight, from, x.size(0), aligned},
          static_cast<const float*>(scale.const_data_ptr()),
          bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
          scale.numel() == 1,
          static_cast<T*>(y.mutable_data_ptr())};
}

// Calls body with a value of the storage type of x
template <class Body>
void dispatch(const Tensor& x, const Body& body) {
  dispatch_floats(kOp, x.scalar_type(), [&](auto zero) {
    if constexpr (std::is_same_v<decltype(zero), double>) {
      check(false, kOp, ": x must be float32, bfloat16 or float16");
    } else {
      body(zero);
    }
  });
}

int64_t blocks(int64_t threads, int64_t count, int batch) {
  return ((count + batch - 1) / batch * threads + kThreads - 1) / kThreads;
}

template <int batch, bool of_planes, class T>
void launch_rows(const Launch& launch, const Linear<T>& job) {
  const int64_t warps = (job.weight.rows + kShare - 1) / kShare;
  launch(switched_linear_rows<batch, of_planes, T>, blocks(warps * kWarpLanes, job.count, batch), job);
}

template <bool of_planes, class T>
void launch_forward(const Launch& launch, const Linear<T>& job) {
  if (job.count <= 1) return launch_rows<1, of_planes>(launch, job);
  if constexpr (sizeof(T) == 2) {
    const int64_t tiles = (job.weight.rows + kTileRows - 1) / kTileRows;
    launch(switched_linear_tiles<of_planes, T>, tiles * ((job.count + kTileBatch - 1) / kTileBatch), job);
  } else {
    launch_rows<kBatch, of_planes>(launch, job);
  }
}

Tensor switched_linear_forward(const Tensor& given_x, const Tensor& given_store, const Tensor& given_scale,
                               const std::optional<Tensor>& given_bias, int64_t high_bits, int64_t bits, bool half_up) {
  check(given_x.dim() == 2, kOp, ": x must be a matrix");
  const Launch launch(kOp, given_x);
  const Tensor x = make_contiguous(given_x), store = make_contiguous(given_store), scale = make_contiguous(given_scale);
  const Tensor bias = given_bias ? make_contiguous(*given_bias) : none_like(scale);
  const StoredRows weight = stored_rows(store, x, x.size(1), high_bits, bits, half_up);
  Tensor y = torch::stable::new_empty(x, {x.size(0), weight.rows});
  dispatch(x, [&](auto zero) {
    const auto job = job_of<decltype(zero)>(weight, scale, given_bias ? &bias : nullptr, x, y);
    weight.planes > 0 ? launch_forward<true>(launch, job) : launch_forward<false>(launch, job);
  });
  return y;
}

Tensor switched_linear_backward(const Tensor& given_grad, const Tensor& given_store, const Tensor& given_scale,
                                int64_t in_features, int64_t high_bits, int64_t bits, bool half_up) {
  const Launch launch(kOp, given_grad);
  const Tensor grad = make_contiguous(given_grad), store = make_contiguous(given_store);
  const Tensor scale = make_contiguous(given_scale);
  const StoredRows weight = stored_rows(store, grad, in_features, high_bits, bits, half_up);
  check(grad.dim() == 2 && grad.size(1) == weight.rows, kOp, ": the gradient must have ", weight.rows, " columns");
  Tensor grad_x = torch::stable::new_empty(grad, {grad.size(0), in_features});
  dispatch(grad, [&](auto zero) {
    const auto job = job_of<decltype(zero)>(weight, scale, nullptr, grad, grad_x);
    launch(switched_linear_columns<decltype(zero)>, blocks(in_features, job.count, kBatch), job);
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) {
  m.impl("switched_linear_forward", TORCH_BOX(&switched_linear_forward));
  m.impl("switched_linear_backward", TORCH_BOX(&switched_linear_backward));
}

}  // namespace mbq::cuda
