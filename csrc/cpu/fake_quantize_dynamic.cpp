// fake_quantize_dynamic on the CPU: x_hat = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale, scale
// and zp of the extremes of every row (Jacob et al., 2018, arXiv 1712.05877, eq. 1). A row is read again from the
// cache.
#include "arguments/tensor.h"
#include "math/affine_math.h"
#include "simd/storage.h"

namespace mbq {
namespace {

constexpr const char* kOp = "fake_quantize_dynamic";
constexpr int64_t kRowGrain = 1 << 15;  // elements worth a thread

// Of some of a row's elements, and of 0. odd: one is NaN, which comparisons lose.
template <class W>
struct Extremes {
  W least = 0, greatest = 0;
  int odd = 0;
};

// The upper half of 2 * half lanes onto the lower: as many as the compiler knows, so that it makes vectors of them.
template <int64_t half, class W>
MBQ_HD void fold(W* least, W* greatest) {
  for (int64_t j = 0; j < half; ++j) {
    least[j] = least[j + half] < least[j] ? least[j + half] : least[j];
    greatest[j] = greatest[j + half] > greatest[j] ? greatest[j + half] : greatest[j];
  }
}

template <class W>
MBQ_HD void add_extremes(const W* __restrict x, int64_t n, Extremes<W>* of_row) {
  alignas(64) W least[kLanes] = {}, greatest[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      least[j] = x[i + j] < least[j] ? x[i + j] : least[j];
      greatest[j] = x[i + j] > greatest[j] ? x[i + j] : greatest[j];
    }
  for (; i < n; ++i) {
    least[0] = x[i] < least[0] ? x[i] : least[0];
    greatest[0] = x[i] > greatest[0] ? x[i] : greatest[0];
  }
  int odd = 0;
  for (i = 0; i < n; ++i) odd |= x[i] != x[i];
  fold<16>(least, greatest);
  fold<8>(least, greatest);
  fold<4>(least, greatest);
  fold<2>(least, greatest);
  fold<1>(least, greatest);
  of_row->least = least[0] < of_row->least ? least[0] : of_row->least;
  of_row->greatest = greatest[0] > of_row->greatest ? greatest[0] : of_row->greatest;
  of_row->odd |= odd;
}

// What the rows of a call have in common.
template <class W>
struct Options {
  Bounds<W> range;
  bool symmetric;
  W eps;
};

template <class T, class W>
MBQ_HD AffineRange<W> range_of(const Extremes<W>& row, const Options<W>& options) {
  const W none = static_cast<W>(NAN);
  return dynamic_range<T>(row.odd ? none : row.least, row.odd ? none : row.greatest, options.range, options.symmetric,
                          options.eps);
}

template <class W>
MBQ_HD void values(const W* __restrict x, W* __restrict out, int64_t n, AffineRange<W> by, Bounds<W> range) {
  const W inv_scale = inverse(by.scale);
  for (int64_t i = 0; i < n; ++i)
    out[i] = affine_decode(affine_encode(x[i], inv_scale, by.zero_point, range).kept, by.scale);
}

template <class W>
struct AddExtremes {
  MBQ_HD void operator()(const W* x, int64_t n, Extremes<W>* of_row) const { add_extremes(x, n, of_row); }
};

template <class W>
struct Values {
  MBQ_HD void operator()(const W* x, W* out, int64_t n, AffineRange<W> by, Bounds<W> range) const {
    values(x, out, n, by, range);
  }
};

// Whole rows that are one block together.
template <class T, class W>
struct ShortRows {
  MBQ_HD void operator()(const W* x, W* out, int64_t rows, int64_t size, const Options<W>* options, W* scale,
                         W* zero_point) const {
    for (int64_t row = 0; row < rows; ++row) {
      Extremes<W> extremes;
      add_extremes(x + row * size, size, &extremes);
      const AffineRange<W> by = range_of<T>(extremes, *options);
      scale[row] = by.scale;
      zero_point[row] = by.zero_point;
      values(x + row * size, out + row * size, size, by, options->range);
    }
  }
};

template <class W>
struct GradientsOfRows {
  MBQ_HD void operator()(const W* grad, const W* x, W* grad_x, int64_t rows, int64_t size, const W* scale,
                         const W* zero_point, Bounds<W> range, bool product) const {
    for (int64_t row = 0; row < rows; ++row) {
      const W inv_scale = inverse(scale[row]), up = product ? scale[row] : W(1), down = product ? inv_scale : W(1);
      gradients(grad + row * size, x + row * size, grad_x + row * size, size, inv_scale, zero_point[row], range, up,
                down);
    }
  }
  MBQ_HD static void gradients(const W* __restrict grad, const W* __restrict x, W* __restrict grad_x, int64_t n,
                               W inv_scale, W zero_point, Bounds<W> range, W up, W down) {
    for (int64_t i = 0; i < n; ++i) grad_x[i] = dynamic_gradient(grad[i], x[i], inv_scale, zero_point, range, up, down);
  }
};

// x as (rows, size), contiguous.
struct __attribute__((visibility("hidden"))) DynamicRows {
  Tensor x;
  int64_t rows, size;
  Bounds<double> range;
  bool past_cache;

  DynamicRows(const Tensor& given, int64_t quant_min, int64_t quant_max)
      : x(make_contiguous(given)), range{static_cast<double>(quant_min), static_cast<double>(quant_max)} {
    check(x.dim() == 2 && x.size(1) > 0 && x.is_cpu(), kOp, ": x must be (rows, size) on the CPU, size >= 1");
    rows = x.size(0);
    size = x.size(1);
    past_cache = x.numel() * static_cast<int64_t>(x.element_size()) > kCacheBytes;
  }

  template <class W>
  Bounds<W> range_in() const {
    return {static_cast<W>(range.lo), static_cast<W>(range.hi)};
  }

  // visit(row, rows, begin, n) for blocks of short rows, or for the pieces of one row, which begin at `begin`.
  template <class Visit>
  void for_each_block(int64_t first, int64_t last, const Visit& visit) const {
    const int64_t together = std::max<int64_t>(1, kBlock / size);
    for (int64_t row = first; row < last; row += together) {
      const int64_t count = std::min(together, last - row);
      for (int64_t at = 0; at < size; at += kBlock) visit(row, count, row * size + at, std::min(kBlock, size - at));
    }
  }

  template <class Body>
  void for_each_range(const Body& body) const {
    torch::stable::parallel_for(0, rows, kRowGrain / size + 1, [&](int64_t first, int64_t last) {
      body(first, last);
      finish_streams();
    });
  }
};

template <class T, class W = wide_t<T>>
void forward(const DynamicRows& all, const Options<W>& options, T* out, W* scale, W* zero_point) {
  const T* x = static_cast<const T*>(all.x.const_data_ptr());
  all.for_each_range([&](int64_t first, int64_t last) {
    alignas(64) W read[kBlock];
    Results<T, W> results(all.past_cache);
    const auto short_rows = [&](int64_t row, int64_t count, int64_t begin, int64_t n) {
      run<ShortRows<T, W>>(load(x + begin, read, count * n), results.target(out + begin), count, n, &options,
                           scale + row, zero_point + row);
      results.finish(out + begin, count * n);
    };
    if (all.size <= kBlock) return all.for_each_block(first, last, short_rows);
    for (int64_t row = first; row < last; ++row) {
      Extremes<W> extremes;
      all.for_each_block(row, row + 1, [&](int64_t, int64_t, int64_t begin, int64_t n) {
        run<AddExtremes<W>>(load(x + begin, read, n), n, &extremes);
      });
      const AffineRange<W> by = range_of<T>(extremes, options);
      scale[row] = by.scale;
      zero_point[row] = by.zero_point;
      all.for_each_block(row, row + 1, [&](int64_t, int64_t, int64_t begin, int64_t n) {
        run<Values<W>>(load(x + begin, read, n), results.target(out + begin), n, by, options.range);
        results.finish(out + begin, n);
      });
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_dynamic_forward(const Tensor& x, int64_t quant_min, int64_t quant_max,
                                                                 bool symmetric, double eps) {
  const DynamicRows all(x, quant_min, quant_max);
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor x_hat = allocate_like(all.x), scale = allocate_row(x, all.rows, dtype);
  Tensor zero_point = allocate_row(x, all.rows, dtype);
  dispatch_floats(kOp, x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    forward<T>(all, {all.range_in<W>(), symmetric, static_cast<W>(eps)}, static_cast<T*>(x_hat.mutable_data_ptr()),
               static_cast<W*>(scale.mutable_data_ptr()), static_cast<W*>(zero_point.mutable_data_ptr()));
  });
  return {x_hat, scale, zero_point};
}

template <class T, class W = wide_t<T>>
void backward(const DynamicRows& all, const T* grad, const W* scale, const W* zero_point, bool product, T* grad_x) {
  const T* x = static_cast<const T*>(all.x.const_data_ptr());
  all.for_each_range([&](int64_t first, int64_t last) {
    alignas(64) W read[kBlock], read_grad[kBlock];
    Results<T, W> results(all.past_cache);
    all.for_each_block(first, last, [&](int64_t row, int64_t count, int64_t begin, int64_t n) {
      run<GradientsOfRows<W>>(load(grad + begin, read_grad, count * n), load(x + begin, read, count * n),
                              results.target(grad_x + begin), count, n, scale + row, zero_point + row,
                              all.range_in<W>(), product);
      results.finish(grad_x + begin, count * n);
    });
  });
}

Tensor fake_quantize_dynamic_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                      const Tensor& zero_point, int64_t quant_min, int64_t quant_max, bool product) {
  const DynamicRows all(x, quant_min, quant_max);
  const Tensor given = aligned(kOp, grad, all.x), scales = make_contiguous(scale);
  const Tensor zero_points = make_contiguous(zero_point);
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(given.scalar_type() == x.scalar_type(), kOp, ": the gradient must have x's dtype");
  for (const Tensor& parameter : {scales, zero_points})
    check(parameter.numel() == all.rows && parameter.scalar_type() == dtype && parameter.is_cpu(), kOp,
          ": scale and zero_point must have an element per row, and be float64 where x is, else float32");
  Tensor grad_x = allocate_like(all.x);
  dispatch_floats(kOp, x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    backward<T>(all, static_cast<const T*>(given.const_data_ptr()), static_cast<const W*>(scales.const_data_ptr()),
                static_cast<const W*>(zero_points.const_data_ptr()), product,
                static_cast<T*>(grad_x.mutable_data_ptr()));
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("fake_quantize_dynamic_forward", TORCH_BOX(&fake_quantize_dynamic_forward));
  m.impl("fake_quantize_dynamic_backward", TORCH_BOX(&fake_quantize_dynamic_backward));
}

}  // namespace mbq
