// sample_grad_norm_conv2d on the CPU: |factor G U^T|^2 + |sum_l g_l|^2 for every sample, U the windows of its image
// (Rochette et al., 2019, arXiv 1912.06015).
#include "cpu/sample_norms/driver.h"
#include "cpu/sample_norms/gram.h"
#include "cpu/sample_norms/tiles.h"

namespace mbq {
namespace {

constexpr const char* kOp = "sample_grad_norm_conv2d";

// The channels of every position of x (N, C, H, W), whose rows follow each other: pixels of an image, or outputs.
template <class W>
std::unique_ptr<Source<W>> channels_of(const Tensor& x, int64_t groups) {
  const int64_t channels = x.size(1) / groups, step = x.size(3) > 1 ? x.stride(3) : x.stride(2);
  return strided_source<W>(kOp, x, {groups, x.stride(0), channels * x.stride(1), step, x.stride(1)},
                           x.size(2) * x.size(3), channels);
}

template <class W>
std::unique_ptr<Source<W>> windows_of(const Tensor& x, int64_t groups, const Geometry& geometry) {
  std::unique_ptr<Source<W>> result;
  dispatch_floats(kOp, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<wide_t<T>, W>) {
      auto windows = std::make_unique<Windows<T, W>>();
      windows->positions = geometry.positions();
      windows->columns = x.size(1) / groups * geometry.taps();
      windows->data = static_cast<const T*>(x.const_data_ptr());
      windows->groups = groups;
      windows->geometry = geometry;
      windows->sample_stride = x.stride(0);
      windows->channel_stride = x.stride(1);
      windows->row_stride = x.stride(2);
      windows->pixel_stride = x.stride(3);
      result = std::move(windows);
    }
  });
  return result;
}

bool pointwise(const Geometry& g) {
  return g.taps() == 1 && std::equal(g.size, g.size + 2, g.outputs) && g.padding[0] == 0 && g.padding[1] == 0 &&
         g.stride[0] == 1 && g.stride[1] == 1;
}

template <class W>
std::vector<double> norms_of(const Tensor& activations, const Tensor& grad_outputs, const W* factor, int64_t groups,
                             bool bias, const Geometry& geometry, std::optional<bool> gram) {
  const auto pixels = channels_of<W>(activations, groups), grads = channels_of<W>(grad_outputs, groups);
  const bool plain = pointwise(geometry);
  const auto windows = plain ? nullptr : windows_of<W>(activations, groups, geometry);
  const Source<W>* seen_by_weight = plain ? pixels.get() : windows.get();
  const Samples<W> samples{activations.size(0), groups, seen_by_weight, grads.get(), factor, bias};
  const int64_t positions = geometry.positions(), seen = geometry.pixels();
  const bool possible = factor == nullptr && samples.inputs() > 0 && (plain || seen <= kMostPixels);
  const bool by_gram =
      possible && gram.value_or(gram_is_cheaper(positions, seen, pixels->columns, samples.outputs(), samples.inputs()));
  return by_gram ? norms_by_gram<W>(samples, *pixels, plain ? nullptr : &geometry) : norms_by_tiles(samples);
}

Geometry geometry_of(const Tensor& x, const Tensor& y, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  check(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
        ": kernel_size, stride, padding and dilation must be two integers");
  Geometry g;
  for (int i = 0; i < 2; ++i) {
    check(kernel[i] > 0 && stride[i] > 0 && padding[i] >= 0 && dilation[i] > 0, kOp,
          ": kernel_size, stride and dilation must be > 0, padding >= 0");
    g.size[i] = x.size(2 + i);
    g.outputs[i] = y.size(2 + i);
    g.kernel[i] = kernel[i];
    g.stride[i] = stride[i];
    g.padding[i] = padding[i];
    g.dilation[i] = dilation[i];
  }
  return g;
}

// x, or a copy of it, with rows that follow each other: then positions are one dimension.
Tensor rows_together(const Tensor& x) {
  const bool follow = x.size(2) < 2 || x.size(3) < 2 || x.stride(2) == x.size(3) * x.stride(3);
  return follow ? x : make_contiguous(x);
}

Tensor sample_grad_norm_conv2d_forward(const Tensor& activations, const Tensor& grad_outputs,
                                       const std::optional<Tensor>& weight_factor, std::vector<int64_t> kernel_size,
                                       std::vector<int64_t> stride, std::vector<int64_t> padding,
                                       std::vector<int64_t> dilation, int64_t groups, bool bias,
                                       std::optional<bool> gram) {
  check(activations.dim() == 4 && grad_outputs.dim() == 4 && activations.size(0) == grad_outputs.size(0) &&
            groups > 0 && activations.size(1) % groups == 0 && grad_outputs.size(1) % groups == 0,
        kOp, ": activations and grad_outputs must be (N, C_in, H, W) and (N, C_out, H_out, W_out), C in ", groups,
        " groups");
  const Tensor x = rows_together(activations), grads = rows_together(grad_outputs);
  const Geometry geometry = geometry_of(x, grads, kernel_size, stride, padding, dilation);
  const int64_t inputs = x.size(1) / groups * geometry.taps();
  return sample_norms(kOp, x, grads, weight_factor, gram, inputs, [&](auto zero, const auto* factor) {
    return norms_of<decltype(zero)>(x, grads, factor, groups, bias, geometry, gram);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("sample_grad_norm_conv2d_forward", TORCH_BOX(&sample_grad_norm_conv2d_forward));
}

}  // namespace mbq
