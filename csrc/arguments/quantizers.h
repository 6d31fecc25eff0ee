// K quantizers over one x, as the raw operators receive them. Shared by csrc/cpu and csrc/cuda.
#pragma once

#include <string>

#include "math/affine_math.h"
#include "tensor.h"

namespace mbq {

// A parameter (scales, offsets or zero points) of K quantizers: K rows of C in one contiguous tensor, or a contiguous
// tensor a row. No tensor: there is no such parameter. shared: one row for all of them, which gets their summed
// gradient.
struct __attribute__((visibility("hidden"))) Rows {
  std::vector<Tensor> tensors;
  bool shared = false;

  Rows() = default;
  explicit Rows(const std::optional<Tensor>& all) {
    if (all) tensors.push_back(make_contiguous(*all));
  }
  // `count` tensors of a list from `first` on.
  Rows(const std::vector<Tensor>& list, size_t first, size_t count) {
    for (size_t k = first; k < first + count; ++k) tensors.push_back(make_contiguous(list[k]));
  }

  static Rows one_for_all(const std::optional<Tensor>& row) {
    Rows rows(row);
    rows.shared = true;
    return rows;
  }

  bool absent() const { return tensors.empty(); }

  // Row k, in the dtype W that check_against has seen; null where absent.
  template <class W>
  const W* row(size_t k, int64_t channels) const {
    if (absent()) return nullptr;
    if (tensors.size() > 1) return static_cast<const W*>(tensors[k].const_data_ptr());
    return static_cast<const W*>(tensors[0].const_data_ptr()) + (shared ? 0 : static_cast<int64_t>(k)) * channels;
  }
};

inline std::vector<Bounds<double>> ranges_of(const char* op, const std::vector<int64_t>& bits, bool is_signed) {
  std::vector<Bounds<double>> ranges;
  for (int64_t b : bits) {
    check(1 <= b && b <= 8, op, ": bits must be between 1 and 8, got ", b);
    ranges.push_back(bounds<double>(b, is_signed));
  }
  return ranges;
}

// Codes of `high_bits` are rounded again to those of every range.
struct DoubleRounding {
  int64_t high_bits;
  bool half_up, scale_chain;

  // 2^D: the coarser codes' step over that of high_bits
  double ratio(const Bounds<double>& range) const { return bounds<double>(high_bits, true).lo / range.lo; }
};

// x is dense; scales, shifts (offsets or zero points), and units and floors of the scales have K rows of C.
struct __attribute__((visibility("hidden"))) Quantizers {
  const char* op;
  Tensor x;
  Layout layout;
  std::vector<Bounds<double>> ranges;
  Rows scales, shifts, units, floors;
  std::optional<DoubleRounding> rounding = {};
  AffineForm<float> form = {};
  std::string which = "";  // tensor of several

  Quantizers(const char* name, const Tensor& given_x, std::optional<int64_t> axis, std::vector<Bounds<double>> r,
             Rows scale_rows, Rows shift_rows, Rows unit_rows = {}, Rows floor_rows = {})
      : op(name),
        x(dense(given_x)),
        layout(layout_of(op, x, axis)),
        ranges(std::move(r)),
        scales(std::move(scale_rows)),
        shifts(std::move(shift_rows)),
        units(std::move(unit_rows)),
        floors(std::move(floor_rows)) {}

  // What the loops take on trust: one tensor (result or gradient) per quantizer, one parameter per channel, dtypes.
  void check_against(const std::vector<Tensor>& tensors) const {
    check(!ranges.empty() && tensors.size() == ranges.size(), op, ": needs one tensor per bit-width (", ranges.size(),
          "), got ", tensors.size(), which);
    for (const Tensor& tensor : tensors)
      check(tensor.scalar_type() == tensors[0].scalar_type(), op, ": all gradients must have one dtype", which);
    check_parameters();
  }

  void check_parameters() const {
    check_rows(scales);
    for (const Rows* rows : {&shifts, &units, &floors})
      if (!rows->absent()) check_rows(*rows);
  }

  void check_rows(const Rows& rows) const {
    const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const size_t wanted = rows.shared ? 1 : ranges.size();
    const int64_t each = static_cast<int64_t>(wanted / std::max<size_t>(1, rows.tensors.size()));
    check(each * rows.tensors.size() == wanted, op,
          ": scales, their units and floors, and offsets must have one row per bit-width", which);
    for (const Tensor& tensor : rows.tensors)
      check(tensor.numel() == each * layout.channels && tensor.scalar_type() == dtype && same_device(tensor, x), op,
            ": scales, their units and floors, and offsets must have ", each * layout.channels,
            " elements, x's device, and be float64 where x is, else float32", which);
  }

  // One per quantizer: what is given, or LSQ's; times 2^D, by which its step is the scale, where the chain rule goes
  // on.
  std::vector<double> grad_factors(std::optional<double> given) const {
    std::vector<double> factors;
    for (const Bounds<double>& range : ranges) {
      const double chain = rounding && rounding->scale_chain ? rounding->ratio(range) : 1.0;
      factors.push_back(given.value_or(default_grad_factor(layout.outer * layout.inner, range.hi)) * chain);
    }
    return factors;
  }
};

// Whether a call has one bit-width and results in x's dtype: nothing is compiled for several, or for two dtypes.
template <template <class> class Quantizer>
inline constexpr bool kSingle = false;
template <>
inline constexpr bool kSingle<FakeQuantizeAffine> = true;
template <>
inline constexpr bool kSingle<GeneralAffine> = true;
template <>
inline constexpr bool kSingle<QuantizeCodes> = true;

// The arithmetic of quantizer k in W.
template <template <class> class Quantizer, class W>
Quantizer<W> quantizer_of(const Quantizers& q, size_t k) {
  const auto in_w = [](Bounds<double> b) { return Bounds<W>{static_cast<W>(b.lo), static_cast<W>(b.hi)}; };
  if constexpr (std::is_same_v<Quantizer<W>, DoubleRound<W>>) {
    const W ratio = static_cast<W>(q.rounding->ratio(q.ranges[k]));
    const Bounds<W> range = in_w(q.ranges[k]);
    return {range, {range.lo * ratio, range.hi * ratio}, second_rounding(ratio, q.rounding->half_up)};
  } else if constexpr (std::is_same_v<Quantizer<W>, GeneralAffine<W>>) {
    const AffineForm<float>& f = q.form;
    return {in_w(q.ranges[k]), {f.divide, f.before, f.after, f.by_position, f.through, f.product}};
  } else {
    return {in_w(q.ranges[k])};
  }
}

// Those of double_round, which share one scale.
inline Quantizers double_rounders(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& scale_unit,
                                  const std::optional<Tensor>& scale_floor, int64_t high_bits,
                                  const std::vector<int64_t>& bits, std::optional<int64_t> axis, bool half_up,
                                  bool scale_chain = false) {
  const char* op = "double_round";
  check(2 <= high_bits && high_bits <= 8, op, ": high_bits must be between 2 and 8, got ", high_bits);
  for (int64_t b : bits)
    check(2 <= b && b <= high_bits, op, ": bits must be between 2 and high_bits, ", high_bits, ", got ", b);
  Quantizers q(op, x, axis, ranges_of(op, bits, true), Rows::one_for_all(scale), Rows(), Rows::one_for_all(scale_unit),
               Rows::one_for_all(scale_floor));
  q.rounding = DoubleRounding{high_bits, half_up, scale_chain};
  return q;
}

// Those of fake_quantize_foreach, one per x: the rows of all are in flat lists. An axis of -1: one scale for all of x.
inline std::vector<Quantizers> quantizers_of_each(const char* op, const std::vector<Tensor>& xs,
                                                  const std::vector<Tensor>& scales, const std::vector<Tensor>& offsets,
                                                  const std::vector<Tensor>& scale_units,
                                                  const std::vector<Tensor>& scale_floors,
                                                  const std::vector<int64_t>& bits, bool is_signed,
                                                  const std::vector<int64_t>& axes) {
  const std::vector<Bounds<double>> ranges = ranges_of(op, bits, is_signed);
  const size_t levels = ranges.size(), rows = levels * xs.size();
  check(rows > 0, op, ": needs a tensor and a bit-width");
  const auto fits = [rows](const std::vector<Tensor>& list) { return list.empty() || list.size() == rows; };
  check(axes.size() == xs.size() && scales.size() == rows && fits(offsets) && fits(scale_units) && fits(scale_floors),
        op, ": needs an axis per tensor, and a scale, an offset, a unit and a floor per tensor and bit-width");
  std::vector<Quantizers> each;
  each.reserve(xs.size());
  for (size_t t = 0; t < xs.size(); ++t) {
    const auto axis = axes[t] < 0 ? std::nullopt : std::optional(axes[t]);
    const auto rows_of = [&](const std::vector<Tensor>& list) {
      return list.empty() ? Rows() : Rows(list, t * levels, levels);
    };
    each.emplace_back(op, xs[t], axis, ranges, rows_of(scales), rows_of(offsets), rows_of(scale_units),
                      rows_of(scale_floors));
    each.back().which = ", tensor " + std::to_string(t);
    check(xs[t].scalar_type() == xs[0].scalar_type() && same_device(xs[t], xs[0]), op,
          ": all tensors must have one dtype and device");
  }
  return each;
}

// The share of tensor t, of `levels` each, in a flat list.
inline std::vector<Tensor> share(const std::vector<Tensor>& list, size_t t, size_t levels) {
  return {list.begin() + t * levels, list.begin() + (t + 1) * levels};
}

// One upstream gradient per x and bit-width, in one flat list, each in the memory order of its x.
inline std::vector<Tensor> upstream_of_each(const std::vector<Quantizers>& each, const std::vector<Tensor>& given) {
  const size_t levels = each[0].ranges.size();
  check(!given.empty() && given.size() == levels * each.size(), each[0].op, ": needs one gradient per bit-width (",
        levels * each.size(), "), got ", given.size());
  std::vector<Tensor> grads;
  grads.reserve(given.size());
  for (size_t t = 0; t < each.size(); ++t) {
    for (const Tensor& grad : share(given, t, levels)) grads.push_back(aligned(each[t].op, grad, each[t].x));
    check(grads[t * levels].scalar_type() == given[0].scalar_type(), each[t].op, ": all gradients must have one dtype");
    each[t].check_against(share(grads, t, levels));
  }
  return grads;
}

// Gradients of the xs, and of the tensors of scales and shifts, in their order.
struct __attribute__((visibility("hidden"))) Gradients {
  std::vector<Tensor> xs, scales, shifts;

  // Of one x: of it, of the scales and of the shifts, which have no elements where there are none.
  std::tuple<Tensor, Tensor, Tensor> of_one() const {
    return {xs[0], scales[0], shifts.empty() ? none_like(scales[0]) : shifts[0]};
  }
};

}  // namespace mbq
