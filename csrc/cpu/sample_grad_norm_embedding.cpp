// sample_grad_norm_embedding on the CPU: gradients of one index of a sample add up, then their squares do.
#include <numeric>

#include "cpu/engine/driver.h"

namespace mbq {
namespace {

constexpr const char* kOp = "sample_grad_norm_embedding";

template <class T>
struct AddGradient {
  MBQ_HD void operator()(const T* __restrict g, int64_t n, double* __restrict row) const {
    for (int64_t i = 0; i < n; ++i) row[i] += static_cast<double>(static_cast<wide_t<T>>(g[i]));
  }
};

// The norm of one sample; `order` has its positions by index.
template <class T, class Index>
double norm_of(const T* grad, const Index* index, std::vector<int64_t>& order, int64_t width,
               std::optional<int64_t> padding) {
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return index[a] < index[b]; });
  alignas(64) double row[kBlock];
  double norm = 0;
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t n = std::min(kBlock, width - begin);
    for (size_t t = 0; t < order.size();) {
      const Index at = index[order[t]];
      std::fill_n(row, n, 0.0);
      const bool counts = !padding || at != *padding;
      for (; t < order.size() && index[order[t]] == at; ++t)
        if (counts) run<AddGradient<T>>(grad + order[t] * width + begin, n, static_cast<double*>(row));
      for (int64_t i = 0; i < n; ++i) norm += row[i] * row[i];
    }
  }
  return norm;
}

Tensor sample_grad_norm_embedding_forward(const Tensor& indices, const Tensor& grad_outputs,
                                          std::optional<int64_t> padding_idx) {
  check(indices.dim() == 2 && grad_outputs.dim() == 3 && indices.size(0) == grad_outputs.size(0) &&
            indices.size(1) == grad_outputs.size(1) && indices.is_cpu() && grad_outputs.is_cpu(),
        kOp, ": indices must be (N, T) and grad_outputs (N, T, D), on the CPU");
  const bool long_indices = indices.scalar_type() == ScalarType::Long;
  check(long_indices || indices.scalar_type() == ScalarType::Int, kOp, ": indices must be int64 or int32");
  const Tensor at = make_contiguous(indices), gs = make_contiguous(grad_outputs);
  const int64_t positions = gs.size(1), width = gs.size(2);
  const bool wide = gs.scalar_type() == ScalarType::Double;
  Tensor norms = torch::stable::new_empty(gs, {gs.size(0)}, wide ? ScalarType::Double : ScalarType::Float);
  dispatch_floats(kOp, gs.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    const T* grad = static_cast<const T*>(gs.const_data_ptr());
    auto* to = static_cast<wide_t<T>*>(norms.mutable_data_ptr());
    const auto all = [&](const auto* index) {
      torch::stable::parallel_for(0, gs.size(0), kGrain / (positions * width + 1) + 1, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> order(positions);
        for (int64_t n = begin; n < end; ++n)
          to[n] = static_cast<wide_t<T>>(
              norm_of(grad + n * positions * width, index + n * positions, order, width, padding_idx));
      });
    };
    if (long_indices) {
      all(static_cast<const int64_t*>(at.const_data_ptr()));
    } else {
      all(static_cast<const int32_t*>(at.const_data_ptr()));
    }
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("sample_grad_norm_embedding_forward", TORCH_BOX(&sample_grad_norm_embedding_forward));
}

}  // namespace mbq
