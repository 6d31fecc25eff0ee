// Means and deviations of the channels of a tensor, from one read of it.
#pragma once

#include "math/correction.h"
#include "sums.h"

namespace mbq {

// The first element of every channel in memory, from which deviations are taken.
template <class T, class W = wide_t<T>>
std::vector<W> pivots(Layout layout, const T* x) {
  std::vector<W> first(layout.channels);
  for (int64_t c = 0; layout.numel() > 0 && c < layout.channels; ++c) first[c] = static_cast<W>(x[c * layout.inner]);
  return first;
}

template <class W>
std::vector<Moments> moments(const std::vector<W>& pivot, const SumsWork<DeviationSums<W>, W>& work) {
  const Layout& layout = work.walk.layout;
  std::vector<Moments> all;
  for (int64_t c = 0; c < layout.channels; ++c)
    all.push_back(
        moments_of(pivot[c], work.sum(work.sums, 0, c), work.sum(work.squares, 0, c), layout.outer * layout.inner));
  return all;
}

template <class T, class W = wide_t<T>>
std::vector<Moments> moments_of_tensor(const char* op, const Tensor& dense, std::optional<int64_t> axis) {
  const Layout layout = layout_of(op, dense, axis);
  const T* values = static_cast<const T*>(dense.const_data_ptr());
  const std::vector<W> pivot = pivots<T>(layout, values);
  const SumsWork<DeviationSums<W>, W> work(layout, {{{}, pivot.data(), nullptr}});
  sums_loop(layout, values, work);
  return moments(pivot, work);
}

}  // namespace mbq
