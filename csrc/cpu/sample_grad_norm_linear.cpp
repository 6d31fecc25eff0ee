// sample_grad_norm_linear on the CPU: |factor G^T A|^2 + |sum_t g_t|^2 for every sample (Goodfellow, 2015, arXiv
// 1510.01799; Li et al., 2022, arXiv 2110.05679).
#include "cpu/sample_norms/driver.h"
#include "cpu/sample_norms/gram.h"
#include "cpu/sample_norms/tiles.h"

namespace mbq {
namespace {

constexpr const char* kOp = "sample_grad_norm_linear";

// A tensor (samples, positions, columns).
template <class W>
std::unique_ptr<Source<W>> rows_of(const Tensor& x) {
  return strided_source<W>(kOp, x, {1, x.stride(0), 0, x.stride(1), x.stride(2)}, x.size(1), x.size(2));
}

// One position: |a|^2 |g|^2 + |g|^2
template <class W>
std::vector<double> norms_of_vectors(const Samples<W>& samples) {
  std::vector<double> norms(samples.count);
  const int64_t space = samples.inputs() + samples.outputs();
  for_tasks<W>(samples.count, 1.0 * space, space, [&](int64_t n, W* to) {
    double squares[2] = {0, 0};
    const Source<W>* sources[2] = {samples.activations, samples.grads};
    for (int i = 0; i < 2; ++i) {
      const Matrices<W> row = sources[i]->block({n, 1}, {0, 1}, {0, sources[i]->columns}, to);
      if (row.column_stride != 1) gather(row.data, row.column_stride, to, row.columns);
      const W* values = row.column_stride == 1 ? row.data : to;
      run<Products<W>>(values, W(0), values, row.columns, &squares[i]);  // in double: a small gradient's is no float
    }
    norms[n] = (squares[0] + samples.bias) * squares[1];
  });
  return norms;
}

template <class W>
std::vector<double> norms_of(const Samples<W>& samples, std::optional<bool> gram) {
  const int64_t positions = samples.positions(), inputs = samples.inputs(), outputs = samples.outputs();
  const bool by_gram = samples.factor == nullptr && inputs > 0 &&
                       gram.value_or(gram_is_cheaper(positions, positions, inputs, outputs, inputs));
  if (samples.factor == nullptr && positions == 1 && gram.value_or(true)) return norms_of_vectors(samples);
  return by_gram ? norms_by_gram<W>(samples, *samples.activations, nullptr) : norms_by_tiles(samples);
}

Tensor sample_grad_norm_linear_forward(const Tensor& activations, const Tensor& grad_outputs,
                                       const std::optional<Tensor>& weight_factor, bool bias,
                                       std::optional<bool> gram) {
  check(activations.dim() == 3 && grad_outputs.dim() == 3 && activations.size(0) == grad_outputs.size(0) &&
            activations.size(1) == grad_outputs.size(1),
        kOp, ": activations and grad_outputs must be (N, T, d_in) and (N, T, d_out)");
  const auto norms = [&](auto zero, const auto* factor) {
    using W = decltype(zero);
    const auto a = rows_of<W>(activations), g = rows_of<W>(grad_outputs);
    return norms_of<W>({activations.size(0), 1, a.get(), g.get(), factor, bias}, gram);
  };
  return sample_norms(kOp, activations, grad_outputs, weight_factor, gram, activations.size(2), norms);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("sample_grad_norm_linear_forward", TORCH_BOX(&sample_grad_norm_linear_forward));
}

}  // namespace mbq
