// Squared norms of per-sample gradients that are sums over positions: the sums in double, a cache's worth at a time.
#pragma once

#include "cpu/engine/driver.h"

namespace mbq {

// with_x += g x, alone += g, for n channels that lie side by side
template <class W>
struct AddPosition {
  MBQ_HD void operator()(const W* __restrict g, const W* __restrict x, int64_t n, double* __restrict with_x,
                         double* __restrict alone) const {
    for (int64_t i = 0; i < n; ++i) {
      with_x[i] += static_cast<double>(g[i]) * static_cast<double>(x[i]);
      alone[i] += static_cast<double>(g[i]);
    }
  }
};

// The same of one channel, whose n positions lie side by side; what comes next is fetched.
template <class W>
struct AddChannel {
  MBQ_HD void operator()(const W* __restrict g, const W* __restrict x, int64_t n, Ahead next_g, Ahead next_x,
                         double* with_x, double* alone) const {
    alignas(64) double products[kLanes] = {}, sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      next_g.fetch(i);
      next_x.fetch(i);
      for (int64_t j = 0; j < kLanes; ++j) {
        products[j] += static_cast<double>(g[i + j]) * static_cast<double>(x[i + j]);
        sums[j] += static_cast<double>(g[i + j]);
      }
    }
    for (int64_t j = 0; i + j < n; ++j) {
      products[j] += static_cast<double>(g[i + j]) * static_cast<double>(x[i + j]);
      sums[j] += static_cast<double>(g[i + j]);
    }
    *with_x += lane_sum(products);
    *alone += lane_sum(sums);
  }
};

// norms[n] = one(x of sample n, g of sample n, elements a sample) for (N, A, B) tensors, in the arithmetic's dtype.
template <class One>
Tensor norms_of_samples(const char* op, const Tensor& normalized, const Tensor& grad_outputs, const One& one) {
  check(normalized.dim() == 3 && grad_outputs.dim() == 3 && normalized.is_cpu() && grad_outputs.is_cpu() &&
            std::equal(normalized.sizes().begin(), normalized.sizes().end(), grad_outputs.sizes().begin()),
        op, ": normalized and grad_outputs must have one shape of three dimensions, on the CPU");
  const Tensor xs = make_contiguous(normalized), gs = make_contiguous(grad_outputs);
  const bool wide = gs.scalar_type() == ScalarType::Double;
  Tensor norms = torch::stable::new_empty(gs, {gs.size(0)}, wide ? ScalarType::Double : ScalarType::Float);
  const int64_t each = gs.size(1) * gs.size(2);
  dispatch_pair(op, xs.scalar_type(), gs.scalar_type(), [&](auto x_storage, auto g_storage) {
    using X = decltype(x_storage);
    using G = decltype(g_storage);
    const X* x = static_cast<const X*>(xs.const_data_ptr());
    const G* g = static_cast<const G*>(gs.const_data_ptr());
    auto* to = static_cast<wide_t<G>*>(norms.mutable_data_ptr());
    torch::stable::parallel_for(0, gs.size(0), kGrain / (each + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) to[n] = static_cast<wide_t<G>>(one(x + n * each, g + n * each));
    });
  });
  return norms;
}

}  // namespace mbq
