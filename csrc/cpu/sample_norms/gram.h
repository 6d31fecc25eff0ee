// sample_grad_norm by Gram products: sum_st (A A^T + bias)_st (G G^T)_st, its upper half, in strips of columns. For a
// convolution (A A^T)_st is a sum over taps of products of pixels, which neighbouring windows share:
//   (U U^T)_st = sum_tap P[pixel(s, tap), pixel(t, tap)],  P = X X^T
// a ninth of the multiplications for a kernel of 3x3, and no windows are written out.
#pragma once

#include "products.h"

namespace mbq {

constexpr int64_t kMostRows = 2048;    // of a strip at once
constexpr int64_t kMostPixels = 1024;  // of an image whose Gram matrix is kept: 4 MiB in float32

// Columns of a strip: few multiply slowly, many leave more of the lower half.
inline int64_t strip_columns(int64_t positions) {
  if (positions < 64) return std::max<int64_t>(positions, 1);
  if (positions < 128) return pieces(positions, 32) * 16;  // two strips of whole cache lines
  return positions < 1024 ? 64 : 128;
}

// The share of a square that strips compute.
inline double strip_share(int64_t positions) {
  return 0.5 + 0.5 * strip_columns(positions) / std::max<int64_t>(positions, 1);
}

// Columns of a source that are multiplied at once, and the space they take, in blocks of at most rows x columns
// positions of `batch` samples.
template <class W>
struct GramChunk {
  int64_t size, space;

  GramChunk(const Source<W>& source, int64_t batch, int64_t rows, int64_t columns) : size(source.columns), space(0) {
    if (source.direct()) return;
    size = std::min(size, std::max<int64_t>(64, kTile / (batch * (rows + columns))));
    space = batch * (rows + columns) * size;
  }
};

// out = the products of positions `rows` with positions `columns`, `chunk` columns of the source at once
template <class W>
void gram_block(const Source<W>& source, int64_t chunk, Range batch, Range rows, Range columns, const Matrices<W>& out,
                W* space) {
  for (int64_t begin = 0; begin < source.columns; begin += chunk) {
    const Range some{begin, std::min(chunk, source.columns - begin)};
    const Matrices<W> left = source.block(batch, rows, some, space);
    const Matrices<W> right =
        source.block(batch, columns, some, space + (source.direct() ? 0 : batch.size * rows.size * some.size));
    multiply(left, right.transposed(), out, begin > 0);
  }
}

// to[t - columns.begin] = (U U^T)_st for t >= s of the columns, from the Gram matrix of the pixels
template <class W>
struct AddTaps {
  MBQ_HD void operator()(const Geometry* of, const W* gram, int64_t s, Range columns, W* __restrict to) const {
    const Geometry& g = *of;
    const int64_t width = g.outputs[1], first = std::max(s, columns.begin);
    for (int64_t i = 0; i < columns.size; ++i) to[i] = 0;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t tap_y = tap / g.kernel[1], tap_x = tap % g.kernel[1];
      const int64_t y = g.input(0, s / width, tap_y), x = g.input(1, s % width, tap_x);
      if (!g.inside(0, y) || !g.inside(1, x)) continue;
      const W* products = gram + (y * g.size[1] + x) * g.pixels();
      const Range seen = g.seen(1, tap_x), seen_rows = g.seen(0, tap_y);
      const int64_t last = std::min(seen_rows.end(), (columns.end() + width - 1) / width);
      for (int64_t row = std::max(first / width, seen_rows.begin); row < last; ++row) {
        const int64_t begin = std::max(seen.begin, first - row * width);
        const int64_t end = std::min(seen.end(), columns.end() - row * width);
        const W* from = products + g.input(0, row, tap_y) * g.size[1] + g.input(1, 0, tap_x);
        W* sums = to + row * width - columns.begin;
        if (g.stride[1] == 1)
          for (int64_t i = begin; i < end; ++i) sums[i] += from[i];
        else
          for (int64_t i = begin; i < end; ++i) sums[i] += from[i * g.stride[1]];
      }
    }
  }
};

// A batch of samples whose strips are computed one by one.
template <class W>
struct GramPlan {
  const Samples<W>& samples;
  const Source<W>& pixels;   // of a convolution, or the activations
  const Geometry* geometry;  // null: no convolution
  int64_t columns, rows;     // of a strip, at most, and of its rows at once
  int64_t batch;

  GramPlan(const Samples<W>& of, const Source<W>& source, const Geometry* windows)
      : samples(of),
        pixels(source),
        geometry(windows),
        columns(strip_columns(of.positions())),
        rows(std::min(of.positions(), kMostRows)),
        batch(batch_size(of.all(), std::max(2 * rows * columns, kept()))) {}

  int64_t strips() const { return pieces(samples.positions(), columns); }
  int64_t kept() const { return geometry == nullptr ? 0 : pixels.positions * pixels.positions; }
  int64_t strip() const { return batch * rows * columns; }
  GramChunk<W> grads() const { return {*samples.grads, batch, rows, columns}; }
  GramChunk<W> seen() const {
    if (geometry == nullptr) return {pixels, batch, rows, columns};
    return {pixels, batch, pixels.positions, strip_columns(pixels.positions)};
  }
  int64_t space() const { return batch * kept() + 2 * strip() + std::max(grads().space, seen().space); }
};

// The upper half of the pixels' Gram matrices, (batch, pixels, pixels).
template <class W>
void pixel_gram(const GramPlan<W>& plan, Range batch, W* gram, W* space) {
  const int64_t n = plan.pixels.positions, columns = strip_columns(n), chunk = plan.seen().size;
  for (int64_t strip = 0; strip < pieces(n, columns); ++strip) {
    const Range some = piece_of(n, columns, strip);
    gram_block(plan.pixels, chunk, batch, {0, some.end()}, some,
               {gram + some.begin, batch.size, some.end(), some.size, n * n, n, 1}, space);
  }
}

// 2 sum_{s < t} + sum_{s = t} of (left + shift) right over rows s and columns t, which are rows.size x columns.size
template <class W>
double upper_sum(const W* left, W shift, const W* right, Range rows, Range columns) {
  const int64_t before = std::clamp<int64_t>(columns.begin - rows.begin, 0, rows.size) * columns.size;
  double upper = 0, diagonal = 0;
  run<Products<W>>(left, shift, right, before, &upper);
  for (int64_t at = before; at < rows.size * columns.size; at += columns.size) {
    const int64_t t = rows.begin + at / columns.size - columns.begin, i = at + t;
    run<Products<W>>(left + i, shift, right + i, int64_t{1}, &diagonal);
    run<Products<W>>(left + i + 1, shift, right + i + 1, columns.size - t - 1, &upper);
  }
  return 2 * upper + diagonal;
}

// sums[b * stride] of one strip; `gram` as pixel_gram left it
template <class W>
void strip_norms(const GramPlan<W>& plan, Range batch, Range columns, const W* gram, W* space, double* sums,
                 int64_t stride) {
  const W shift = plan.samples.bias ? W(1) : W(0);
  const int64_t grads = plan.grads().size, seen = plan.seen().size;
  W *left = space, *right = space + plan.strip(), *more = right + plan.strip();
  for (int64_t b = 0; b < batch.size; ++b) sums[b * stride] = 0;
  for (int64_t begin = 0; begin < columns.end(); begin += plan.rows) {
    const Range rows{begin, std::min(plan.rows, columns.end() - begin)};
    const int64_t size = rows.size * columns.size;
    const auto product = [&](W* to) {
      return Matrices<W>{to, batch.size, rows.size, columns.size, size, columns.size, 1};
    };
    gram_block(*plan.samples.grads, grads, batch, rows, columns, product(right), more);
    if (plan.geometry == nullptr) gram_block(plan.pixels, seen, batch, rows, columns, product(left), more);
    for (int64_t b = 0; b < batch.size; ++b) {
      for (int64_t r = 0; plan.geometry != nullptr && r < rows.size; ++r)
        run<AddTaps<W>>(plan.geometry, gram + b * plan.kept(), rows.begin + r, columns,
                        left + b * size + r * columns.size);
      sums[b * stride] += upper_sum(left + b * size, shift, right + b * size, rows, columns);
    }
  }
}

template <class W>
std::vector<double> norms_by_gram(const Samples<W>& samples, const Source<W>& pixels, const Geometry* geometry) {
  if (samples.positions() == 0 || samples.outputs() == 0) return std::vector<double>(samples.count);
  const GramPlan<W> plan(samples, pixels, geometry);
  const int64_t strips = plan.strips(), batches = pieces(samples.all(), plan.batch);
  const int64_t together = geometry == nullptr ? 1 : strips;  // strips that share the pixels' matrix
  std::vector<double> partial(samples.all() * strips);
  const double each = 1.0 * plan.strip() * together * (samples.inputs() + samples.outputs());
  for_tasks<W>(batches * strips / together, each, plan.space(), [&](int64_t task, W* space) {
    const int64_t first = task * together % strips;
    const Range batch = piece_of(samples.all(), plan.batch, task * together / strips);
    W* strip_space = space + plan.batch * plan.kept();
    if (geometry != nullptr) pixel_gram(plan, batch, space, strip_space + 2 * plan.strip());
    for (int64_t strip = first; strip < first + together; ++strip)
      strip_norms(plan, batch, piece_of(samples.positions(), plan.columns, strip), space, strip_space,
                  &partial[batch.begin * strips + strip], strips);
  });
  std::vector<double> norms = ordered_sums(partial, samples.count);
  for (double& norm : norms) norm = norm < 0 ? 0 : norm;  // rounding; NaN stays
  return norms;
}

// Whether Gram products cost less: their multiplications, in strips, against those of tiles and the pass over them.
// `inputs`: multiplications in one element of A A^T, of as many elements as there are pairs of `pixels`.
inline bool gram_is_cheaper(int64_t positions, int64_t pixels, int64_t inputs, int64_t outputs, int64_t columns) {
  const double square = 1.0 * positions * positions, pixel_square = 1.0 * pixels * pixels;
  const double gram =
      kStripCost * (strip_share(pixels) * pixel_square * inputs + strip_share(positions) * square * outputs);
  const double taps = columns > inputs ? 0.5 * square * (columns / inputs) * kTapCost : 0;
  const double tiles = 1.0 * outputs * columns * (positions + kPassCost);
  return gram + taps < kPreference * tiles;
}

}  // namespace mbq
