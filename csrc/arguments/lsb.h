// Weights and their limits, as the raw operators on least significant bits receive them. Shared by csrc/cpu and
// csrc/cuda.
#pragma once

#include <cmath>
#include <string>
#include <tuple>

#include "math/quant_math.h"
#include "tensor.h"

namespace mbq {

// One x, dense, with one limit a channel or none, in one of round_clamp's two forms; k = 0 where only its value is
// asked for.
struct __attribute__((visibility("hidden"))) Weight {
  const char* op;
  Tensor x;
  Layout layout;
  std::optional<Tensor> limit;
  int64_t bits, k;
  bool sign_magnitude;
  std::string which = "";  // tensor of several

  Weight(const char* name, const Tensor& given_x, const std::optional<Tensor>& given_limit, std::optional<int64_t> axis,
         int64_t given_bits, int64_t given_k, bool in_sign_magnitude)
      : op(name),
        x(dense(given_x)),
        layout(layout_of(op, x, axis)),
        bits(given_bits),
        k(given_k),
        sign_magnitude(in_sign_magnitude) {
    check(1 <= bits && bits <= 8, op, ": bits must be between 1 and 8, got ", bits);
    check(0 <= k && k <= 3 && k < bits, op, ": k must be at most 3 and less than bits, ", bits, ", got ", k);
    const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check(given_limit || !axis, op, ": without limit there is no axis");
    if (!given_limit) return;
    limit = make_contiguous(*given_limit);
    check(limit->numel() == layout.channels && limit->scalar_type() == dtype && same_device(*limit, x), op,
          ": limit must have ", layout.channels, " elements, x's device, and be float64 where x is, else float32");
  }

  // Of every channel; null where there is none.
  template <class W>
  const W* limits() const {
    return limit ? static_cast<const W*>(limit->const_data_ptr()) : nullptr;
  }

  template <class W>
  RoundClamp<W> quantizer(bool unit_gradient = false) const {
    const UnitForm<W> form = unit_form<W>(limit.has_value(), sign_magnitude);
    const W steps = static_cast<W>(1 << bits), ratio = static_cast<W>(1 << k);
    return {form, steps, static_cast<W>(1 << (bits - k)), ratio, unit_gradient ? form.half : form.half * steps};
  }
};

// Those of round_clamp_lsb_foreach. No limits: every x is u itself. An axis of -1: one limit for all of x.
inline std::vector<Weight> weights_of_each(const char* op, const std::vector<Tensor>& xs,
                                           const std::vector<Tensor>& limits, const std::vector<int64_t>& bits,
                                           const std::vector<int64_t>& k, const std::vector<int64_t>& axes,
                                           bool sign_magnitude) {
  const size_t count = xs.size();
  check(count > 0, op, ": needs a tensor");
  check(bits.size() == count && k.size() == count && axes.size() == count && (limits.empty() || limits.size() == count),
        op, ": needs bits, k, an axis and, if any, a limit per tensor");
  std::vector<Weight> each;
  each.reserve(count);
  for (size_t t = 0; t < count; ++t) {
    const auto axis = axes[t] < 0 ? std::nullopt : std::optional(axes[t]);
    each.emplace_back(op, xs[t], limits.empty() ? std::nullopt : std::optional(limits[t]), axis, bits[t], k[t],
                      sign_magnitude);
    each.back().which = ", tensor " + std::to_string(t);
    check(xs[t].scalar_type() == xs[0].scalar_type() && same_device(xs[t], xs[0]), op,
          ": all tensors must have one dtype and device");
  }
  return each;
}

// The gradients of values, in the memory order of their xs, and those of the penalties.
inline std::vector<Tensor> aligned_each(const std::vector<Weight>& each, const std::vector<Tensor>& grads) {
  check(grads.empty() || grads.size() == each.size(), each[0].op, ": needs one gradient per tensor (", each.size(),
        "), got ", grads.size());
  std::vector<Tensor> found;
  found.reserve(grads.size());
  for (size_t t = 0; t < grads.size(); ++t) {
    found.push_back(aligned(each[t].op, grads[t], each[t].x));
    check(grads[t].scalar_type() == each[t].x.scalar_type(), each[t].op, ": a gradient must have the dtype of its x");
  }
  return found;
}

inline Tensor checked_penalties(const std::vector<Weight>& each, const Tensor& grads) {
  const Tensor& x = each[0].x;
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(grads.numel() == static_cast<int64_t>(each.size()) && grads.scalar_type() == dtype && same_device(grads, x),
        each[0].op, ": the gradient of the penalty must have ", each.size(),
        " elements, x's device, and be float64 where x is, else float32");
  return make_contiguous(grads);
}

// Results of a forward call; what was not asked for is empty.
struct __attribute__((visibility("hidden"))) Lsbs {
  std::vector<Tensor> outs;    // values or residuals
  std::vector<Tensor> counts;  // penalties and rates
};

// Penalties and rates to come: of one x without dimensions, of a list one element each.
inline std::vector<Tensor> allocate_counts(const std::vector<Weight>& each, bool list) {
  const Tensor& x = each[0].x;
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  std::vector<int64_t> shape;
  if (list) shape.push_back(static_cast<int64_t>(each.size()));
  return {torch::stable::new_empty(x, shape, dtype), torch::stable::new_empty(x, shape, dtype)};
}

}  // namespace mbq
