// What a sample's gradient is the product of: matrices (positions, columns) of every sample, in the arithmetic's dtype.
// They are read where they lie if they can be multiplied there, or else written out for a tile at a time.
#pragma once

#include <memory>

#include "arguments/tensor.h"
#include "simd/storage.h"

namespace mbq {

struct Range {
  int64_t begin, size;
  int64_t end() const { return begin + size; }
};

// Piece `index` of n elements in pieces of at most `size`.
inline Range piece_of(int64_t n, int64_t size, int64_t index) {
  return {index * size, std::min(size, n - index * size)};
}

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// A batch of matrices with any strides.
template <class W>
struct Matrices {
  const W* data;
  int64_t batch, rows, columns, batch_stride, row_stride, column_stride;

  Matrices transposed() const { return {data, batch, columns, rows, batch_stride, column_stride, row_stride}; }
};

template <class W>
struct Source {
  int64_t positions = 0, columns = 0;  // of a sample, which is a group of channels of one image, or all of them

  virtual ~Source() = default;
  virtual bool direct() const = 0;  // blocks are where they lie, and take no space
  virtual Matrices<W> block(Range samples, Range positions, Range columns, W* space) const = 0;
};

// n elements `step` apart, widened.
template <class T, class W>
inline void gather(const T* from, int64_t step, W* to, int64_t n) {
  if (step == 1) return run<Load<T, W>>(from, to, n);
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<W>(from[i * step]);
}

// A tensor with strides for samples, groups of channels, positions and columns.
template <class T, class W>
struct Strided : Source<W> {
  const T* data;
  int64_t groups, sample_stride, group_stride, position_stride, column_stride;

  int64_t at(int64_t sample) const { return sample / groups * sample_stride + sample % groups * group_stride; }

  bool direct() const override {
    const bool multiplied = (column_stride == 1 && position_stride >= this->columns) ||
                            (position_stride == 1 && column_stride >= this->positions);
    return std::is_same_v<T, W> && multiplied && (groups == 1 || sample_stride == groups * group_stride);
  }

  Matrices<W> block(Range samples, Range rows, Range columns, W* space) const override {
    const int64_t first = rows.begin * position_stride + columns.begin * column_stride;
    if constexpr (std::is_same_v<T, W>)
      if (direct())
        return {data + at(samples.begin) + first,           samples.size,    rows.size,    columns.size,
                groups == 1 ? sample_stride : group_stride, position_stride, column_stride};
    const bool by_position = column_stride != 1;  // what lies together stays together
    const int64_t major = by_position ? columns.size : rows.size, minor = by_position ? rows.size : columns.size;
    for (int64_t b = 0; b < samples.size; ++b)
      for (int64_t i = 0; i < major; ++i)
        gather(data + at(samples.begin + b) + first + i * (by_position ? column_stride : position_stride),
               by_position ? position_stride : column_stride, space + (b * major + i) * minor, minor);
    return {
        space, samples.size, rows.size, columns.size, major * minor, by_position ? 1 : minor, by_position ? minor : 1};
  }
};

// How a convolution moves over its image; index 0 is vertical.
struct Geometry {
  int64_t size[2], kernel[2], stride[2], padding[2], dilation[2], outputs[2];

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t positions() const { return outputs[0] * outputs[1]; }
  int64_t pixels() const { return size[0] * size[1]; }
  // Where the window at `output` finds `tap`, along an axis; it may be outside.
  int64_t input(int axis, int64_t output, int64_t tap) const {
    return output * stride[axis] - padding[axis] + tap * dilation[axis];
  }
  bool inside(int axis, int64_t input) const { return 0 <= input && input < size[axis]; }
  // The outputs along an axis whose windows have `tap` inside the image.
  Range seen(int axis, int64_t tap) const {
    const int64_t first = input(axis, 0, tap), step = stride[axis];
    const int64_t begin = std::min(first < 0 ? (-first + step - 1) / step : 0, outputs[axis]);
    const int64_t end = first < size[axis] ? (size[axis] - 1 - first) / step + 1 : 0;
    return {begin, std::max<int64_t>(0, std::min(end, outputs[axis]) - begin)};
  }
};

// The windows of a convolution: columns are (channel, tap), positions are outputs.
template <class T, class W>
struct Windows : Source<W> {
  const T* data;
  int64_t groups, sample_stride, channel_stride, row_stride, pixel_stride;
  Geometry geometry;

  bool direct() const override { return false; }

  Matrices<W> block(Range samples, Range rows, Range columns, W* space) const override {
    const int64_t channels = this->columns / geometry.taps();
    for (int64_t b = 0; b < samples.size; ++b)
      for (int64_t k = 0; k < columns.size; ++k) {
        const int64_t sample = samples.begin + b, column = columns.begin + k;
        const int64_t channel = sample % groups * channels + column / geometry.taps();
        write(data + sample / groups * sample_stride + channel * channel_stride, column % geometry.taps(), rows,
              space + (b * columns.size + k) * rows.size);
      }
    return {space, samples.size, rows.size, columns.size, columns.size * rows.size, 1, rows.size};
  }

  // One tap of every window, from a plane of the image; zeros outside.
  void write(const T* plane, int64_t tap, Range rows, W* to) const {
    const int64_t width = geometry.outputs[1], tap_y = tap / geometry.kernel[1], tap_x = tap % geometry.kernel[1];
    const Range seen = geometry.seen(1, tap_x);
    for (int64_t at = rows.begin; at < rows.end();) {
      const int64_t row = at / width, x = at % width, n = std::min(width - x, rows.end() - at);
      const int64_t y = geometry.input(0, row, tap_y);
      const int64_t begin = std::clamp(seen.begin, x, x + n), end = std::clamp(seen.end(), begin, x + n);
      if (geometry.inside(0, y) && begin < end) {
        std::fill_n(to, begin - x, W(0));
        gather(plane + y * row_stride + geometry.input(1, begin, tap_x) * pixel_stride,
               geometry.stride[1] * pixel_stride, to + begin - x, end - begin);
        std::fill_n(to + end - x, x + n - end, W(0));
      } else {
        std::fill_n(to, n, W(0));
      }
      at += n;
      to += n;
    }
  }
};

}  // namespace mbq
