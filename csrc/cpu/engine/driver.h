// Tensors in, tensors out, for every quantizer with per-channel parameters: memory order, dtypes, checks, the loop.
#pragma once

#include "arguments/quantizers.h"
#include "loop.h"

namespace mbq {

// Memory for rows of effective scales; it must outlive the levels that point into it.
template <class W>
using EffectiveScales = std::vector<std::vector<W>>;

// Looked at here, on the host, before the loop: one comparison a value, and the message only where it fails.
template <class W>
void check_finite(const Quantizers& q, size_t k, const char* name, const W* values, bool positive) {
  bool all = true;
  const auto good = [positive](W v) { return std::isfinite(v) && (!positive || v > 0); };
  const int64_t channels = q.layout.channels;
  for (int64_t c = 0; c < channels; ++c) all &= good(values[c]);
  for (int64_t c = 0; !all && c < channels; ++c)
    check(good(values[c]), q.op, ": ", name, " must be finite", positive ? " and > 0" : "", ", got ", values[c],
          " (element ", static_cast<int64_t>(k) * channels + c, q.which, ")");
}

// max(scale * unit, floor) of quantizer k, which is computed with: a finite scale may be <= 0 where there is a floor.
template <class W>
std::vector<W> effective_scales(const Quantizers& q, size_t k, const W* scale) {
  const int64_t channels = q.layout.channels;
  const W *unit = q.units.row<W>(k, channels), *floor = q.floors.row<W>(k, channels);
  if (unit) check_finite(q, k, "scale_unit", unit, true);
  if (floor) check_finite(q, k, "scale_floor", floor, true);
  std::vector<W> effective(channels);
  for (int64_t c = 0; c < channels; ++c)
    effective[c] = effective_scale(scale[c], unit ? unit[c] : W(1), floor ? floor[c] : -INFINITY);
  check_finite(q, k, "scale * scale_unit", effective.data(), true);
  return effective;
}

// The quantizers with their parameters in the arithmetic's dtype.
template <template <class> class Quantizer, class W>
std::vector<Level<Quantizer<W>, W>> levels_of(const Quantizers& q, EffectiveScales<W>& memory) {
  std::vector<Level<Quantizer<W>, W>> levels;
  levels.reserve(q.ranges.size());
  for (size_t k = 0; k < q.ranges.size(); ++k) {
    const W* scale = q.scales.row<W>(k, q.layout.channels);
    const W* shift = q.shifts.row<W>(k, q.layout.channels);
    check_finite(q, k, "scale", scale, q.floors.absent());
    if constexpr (Quantizer<W>::integer_shift)
      for (int64_t c = 0; c < q.layout.channels; ++c)
        check(!std::isnan(shift[c]), q.op, ": zero_point must not be NaN (element ", c, q.which, ")");
    if (!q.units.absent() || !q.floors.absent()) scale = memory.emplace_back(effective_scales(q, k, scale)).data();
    levels.push_back({quantizer_of<Quantizer, W>(q, k), scale, shift});
  }
  return levels;
}

// Calls body with values of the storage types of x and of `other`, its results or their gradients. same: the two are
// one.
template <bool same = false, class Body>
void dispatch_pair(const char* op, ScalarType x, ScalarType other, const Body& body) {
  if constexpr (same) {
    check(x == other, op, ": x and its result or gradient must have one dtype");
    dispatch_floats(op, x, [&](auto storage) { body(storage, storage); });
  } else {
    dispatch_floats(op, x, [&](auto storage) {
      using W = wide_t<decltype(storage)>;
      dispatch_floats(op, other, [&](auto other_storage) {
        if constexpr (std::is_same_v<wide_t<decltype(other_storage)>, W>) {
          body(storage, other_storage);
        } else {
          check(false, op, ": x and its result or gradient must both be float64 or neither");
        }
      });
    });
  }
}

template <class Pointer>
std::vector<Pointer> pointers(const std::vector<Tensor>& tensors) {
  std::vector<Pointer> found;
  found.reserve(tensors.size());
  for (const Tensor& tensor : tensors) found.push_back(static_cast<Pointer>(tensor.data_ptr()));
  return found;
}

// Of every x one x_hat of `out_dtype` (x's by default) per quantizer, in x's memory order, in one flat list.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward(const std::vector<Quantizers>& each, std::optional<ScalarType> out_dtype) {
  std::vector<Tensor> all;
  const ScalarType x_dtype = each[0].x.scalar_type(), dtype = out_dtype.value_or(x_dtype);
  dispatch_pair<kSingle<Quantizer>>(each[0].op, x_dtype, dtype, [&](auto storage, auto out_storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    std::vector<ForwardWork<Quantizer<W>, T, decltype(out_storage)>> works;
    works.reserve(each.size());
    EffectiveScales<W> memory;
    for (const Quantizers& q : each) {
      std::vector<Tensor> outs;
      for (size_t k = 0; k < q.ranges.size(); ++k) outs.push_back(allocate_like(q.x, dtype));
      q.check_against(outs);
      works.emplace_back(q.layout, levels_of<Quantizer, W>(q, memory), static_cast<const T*>(q.x.const_data_ptr()),
                         pointers<decltype(out_storage)*>(outs));
      all.insert(all.end(), outs.begin(), outs.end());
    }
    forward_loop(works);
  });
  return all;
}

constexpr int64_t kChannelGrain = 1 << 14;  // channels worth a thread: groups of a weight may be half a million

// Appends factor * channel sum, added over the levels of a row, to `gradients`, in tensors like those of `rows`, whose
// dtype W is; over the unit of its parameter, where there are units.
template <class W, class Work>
void append_gradients(const Rows& rows, const Rows& units, const Work& work, const std::vector<double>& partial,
                      const std::vector<double>& factors, std::vector<Tensor>& gradients) {
  const int64_t channels = work.walk.layout.channels;
  const size_t together = rows.shared ? factors.size() : 1;
  W* out = nullptr;
  for (size_t k = 0; k < factors.size(); k += together) {
    if (k < rows.tensors.size()) {
      gradients.push_back(allocate_like(rows.tensors[k]));
      out = static_cast<W*>(gradients.back().mutable_data_ptr());
    }
    const W* unit = units.row<W>(k, channels);
    torch::stable::parallel_for(0, channels, kChannelGrain, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        double sum = 0;
        for (size_t j = k; j < k + together; ++j) sum += factors[j] * work.channel_sum(partial, j, c);
        out[c] = static_cast<W>(unit ? sum / unit[c] : sum);
      }
    });
    out += channels;
  }
}

// given: one gradient per x and quantizer, in one flat list.
template <template <class> class Quantizer>
Gradients quantize_backward(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                            std::optional<double> grad_factor) {
  const size_t levels = each[0].ranges.size();
  const std::vector<Tensor> grads = upstream_of_each(each, given);
  Gradients gradients;
  const ScalarType x_dtype = each[0].x.scalar_type(), grad_dtype = given[0].scalar_type();
  dispatch_pair<kSingle<Quantizer>>(each[0].op, x_dtype, grad_dtype, [&](auto storage, auto grad_storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    std::vector<BackwardWork<Quantizer<W>, T, decltype(grad_storage)>> works;
    EffectiveScales<W> memory;
    works.reserve(each.size());
    for (size_t t = 0; t < each.size(); ++t) {
      const Quantizers& q = each[t];
      gradients.xs.push_back(allocate_like(q.x));
      works.emplace_back(q.layout, levels_of<Quantizer, W>(q, memory), static_cast<const T*>(q.x.const_data_ptr()),
                         pointers<const decltype(grad_storage)*>(share(grads, t, levels)),
                         static_cast<T*>(gradients.xs.back().mutable_data_ptr()));
    }
    backward_loop(works);
    for (size_t t = 0; t < each.size(); ++t) {
      const std::vector<double> factors = each[t].grad_factors(grad_factor);
      append_gradients<W>(each[t].scales, each[t].units, works[t], works[t].to_scale, factors, gradients.scales);
      if (each[t].shifts.absent()) continue;
      append_gradients<W>(each[t].shifts, Rows(), works[t], works[t].to_shift, factors, gradients.shifts);
    }
  });
  return gradients;
}

// Gradients of x, of the scales and of the shifts (no elements where there are none), of one x.
template <template <class> class Quantizer>
std::tuple<Tensor, Tensor, Tensor> quantize_backward(const Quantizers& quantizers, const std::vector<Tensor>& grads,
                                                     std::optional<double> grad_factor) {
  return quantize_backward<Quantizer>(std::vector{quantizers}, grads, grad_factor).of_one();
}

// Both of many xs. On the CPU their loops are those of one x; on CUDA their kernels are others.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward_each(const std::vector<Quantizers>& each, std::optional<ScalarType> out_dtype) {
  return quantize_forward<Quantizer>(each, out_dtype);
}

template <template <class> class Quantizer>
Gradients quantize_backward_each(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                                 std::optional<double> grad_factor) {
  return quantize_backward<Quantizer>(each, given, grad_factor);
}

}  // namespace mbq
