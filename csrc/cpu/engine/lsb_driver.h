// Tensors in, tensors out, for round_clamp and the ops on its least significant bits.
#pragma once

#include "lsb_loop.h"

namespace mbq {

// Limits are looked at on the host, before the loop.
template <class W>
void check_limits(const Weight& weight) {
  for (int64_t c = 0; weight.limit && c < weight.layout.channels; ++c) {
    const W limit = weight.limits<W>()[c];
    check(limit >= 0 && std::isfinite(limit), weight.op, ": limit must be finite and >= 0, got ", limit, " (element ",
          c, weight.which, ")");
  }
}

// Names the element by its index in the order of x's dimensions, whatever its place in memory.
template <class T>
void check_found(const Weight& weight, const Found& found) {
  const int64_t at = found.outside;
  if (at == std::numeric_limits<int64_t>::max()) return;
  const auto value = static_cast<wide_t<T>>(static_cast<const T*>(weight.x.const_data_ptr())[at]);
  check(false, weight.op, ": x must lie within ", weight.limit ? "[-limit, limit]" : "[0, 1]", ", got ",
        std::isnan(value) ? std::abs(value) : value, " (element ", index_at(weight.x, at), weight.which, ")");
}

template <class T>
void store_counts(const std::vector<Weight>& each, const std::vector<Found>& found, const std::vector<Tensor>& counts) {
  using W = wide_t<T>;
  for (size_t t = 0; t < each.size(); ++t) {
    const double numel = static_cast<double>(std::max<int64_t>(1, each[t].layout.numel()));
    static_cast<W*>(counts[0].mutable_data_ptr())[t] = static_cast<W>(found[t].penalty.load());
    static_cast<W*>(counts[1].mutable_data_ptr())[t] = static_cast<W>(found[t].nonzero.load() / numel);
  }
}

// One number of every channel, made from its limit by the quantizer.
template <class W, class Make>
std::vector<W> of_channels(const Weight& weight, bool unit_gradient, const Make& make) {
  const auto [quantizer, limits, none] = level_of<W>(weight, nullptr, unit_gradient)[0];
  std::vector<W> made(weight.layout.channels);
  for (size_t c = 0; c < made.size(); ++c) made[c] = make(quantizer, limits[c]);
  return made;
}

// Values or residuals of every x, and with `counts` their penalties and rates; many: those are lists.
template <LsbOut out, bool counts, bool many = false>
Lsbs lsb_forward(const std::vector<Weight>& each) {
  Lsbs lsbs;
  if (counts) lsbs.counts = allocate_counts(each, many);
  dispatch_floats(each[0].op, each[0].x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using Loop = RoundClampWork<out, counts, T>;
    using W = wide_t<T>;
    std::vector<Loop> works;
    std::vector<std::vector<W>> scales;
    std::vector<Found> found(each.size());
    works.reserve(each.size());
    scales.reserve(each.size());
    int64_t bytes = 0;
    for (size_t t = 0; t < each.size(); ++t) {
      check_limits<W>(each[t]);
      typename Loop::Result* to = nullptr;
      if (out != LsbOut::nothing) {
        const auto dtype = out == LsbOut::residual ? ScalarType::Char : each[t].x.scalar_type();
        lsbs.outs.push_back(allocate_like(each[t].x, dtype));
        to = static_cast<typename Loop::Result*>(lsbs.outs.back().mutable_data_ptr());
      }
      scales.push_back(
          of_channels<W>(each[t], false, [](const auto& quantizer, W limit) { return quantizer.scale(limit); }));
      works.emplace_back(each[t], scales[t].data(), to, &found[t]);
      bytes += each[t].layout.numel() * sizeof(*to);
    }
    for_each_range(works,
                   [&](const Loop& work, int64_t first, int64_t last) { work(first, last, bytes > kCacheBytes); });
    for (size_t t = 0; t < each.size(); ++t) check_found<T>(each[t], found[t]);
    if (counts) store_counts<T>(each, found, lsbs.counts);
  });
  return lsbs;
}

// Gradients of every x: of its penalty, and with `task` of its value too, of which `grads` are the upstream ones.
template <bool task, bool many = false>
std::vector<Tensor> lsb_backward(const std::vector<Weight>& each, const std::vector<Tensor>& grads,
                                 const Tensor& grad_penalties, bool unit_gradient) {
  const std::vector<Tensor> upstream = aligned_each(each, grads);
  const Tensor penalties = checked_penalties(each, grad_penalties);
  check(!task || upstream.size() == each.size(), each[0].op, ": needs a gradient per tensor");
  std::vector<Tensor> grad_xs;
  dispatch_floats(each[0].op, each[0].x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using Loop = LsbGradientWork<task, T>;
    using W = wide_t<T>;
    std::vector<Loop> works;
    std::vector<std::vector<W>> slopes;
    works.reserve(each.size());
    slopes.reserve(each.size());
    int64_t bytes = 0;
    for (size_t t = 0; t < each.size(); ++t) {
      const W grad = static_cast<const W*>(penalties.const_data_ptr())[t];
      slopes.push_back(of_channels<W>(each[t], unit_gradient, [&](const auto& quantizer, W limit) {
        return lsb_slope(grad, limit, quantizer.factor);
      }));
      grad_xs.push_back(allocate_like(each[t].x));
      works.emplace_back(each[t], slopes[t].data(), unit_gradient,
                         task ? static_cast<const T*>(upstream[t].const_data_ptr()) : nullptr,
                         static_cast<T*>(grad_xs[t].mutable_data_ptr()));
      bytes += each[t].layout.numel() * sizeof(T);
    }
    for_each_task(works, [&](const Loop& work, const Task& part) { work(part, bytes > kCacheBytes); });
  });
  return grad_xs;
}

}  // namespace mbq
