// What the ops of per-sample gradient norms do with their arguments and results.
#pragma once

#include "products.h"

namespace mbq {

struct Strides {
  int64_t groups, sample, group, position, column;
};

template <class W>
std::unique_ptr<Source<W>> strided_source(const char* op, const Tensor& x, Strides strides, int64_t positions,
                                          int64_t columns) {
  std::unique_ptr<Source<W>> result;
  if (columns == 1) strides.column = 1;
  if (positions == 1 && strides.column == 1) strides.position = columns;
  dispatch_floats(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<wide_t<T>, W>) {
      auto source = std::make_unique<Strided<T, W>>();
      source->positions = positions;
      source->columns = columns;
      source->data = static_cast<const T*>(x.const_data_ptr());
      source->groups = strides.groups;
      source->sample_stride = strides.sample;
      source->group_stride = strides.group;
      source->position_stride = strides.position;
      source->column_stride = strides.column;
      result = std::move(source);
    }
  });
  return result;
}

// Checks what is the same for every op, and calls norms(W{}, factor) for the dtype of the arithmetic.
template <class Norms>
Tensor sample_norms(const char* op, const Tensor& activations, const Tensor& grad_outputs,
                    const std::optional<Tensor>& weight_factor, std::optional<bool> gram, int64_t inputs,
                    const Norms& norms) {
  const bool wide = activations.scalar_type() == ScalarType::Double;
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  check(activations.is_cpu() && grad_outputs.is_cpu() && wide == (grad_outputs.scalar_type() == ScalarType::Double), op,
        ": activations and grad_outputs must be on the CPU, and float64 both or neither");
  check(!weight_factor || (weight_factor->is_cpu() && weight_factor->scalar_type() == dtype &&
                           weight_factor->numel() == grad_outputs.size(1 + (grad_outputs.dim() == 3)) * inputs),
        op, ": weight_factor must have the weight's size and the dtype of the arithmetic");
  check(!gram.value_or(false) || !weight_factor, op, ": Gram products must have no weight_factor");
  const std::optional<Tensor> factor =
      weight_factor ? std::optional<Tensor>(make_contiguous(*weight_factor)) : std::nullopt;
  const void* factors = factor ? factor->const_data_ptr() : nullptr;
  Tensor result = torch::stable::new_empty(activations, {activations.size(0)}, dtype);
  const std::vector<double> sums =
      wide ? norms(double{}, static_cast<const double*>(factors)) : norms(float{}, static_cast<const float*>(factors));
  for (size_t n = 0; n < sums.size(); ++n) {
    if (wide) {
      static_cast<double*>(result.mutable_data_ptr())[n] = sums[n];
    } else {
      static_cast<float*>(result.mutable_data_ptr())[n] = static_cast<float>(sums[n]);
    }
  }
  return result;
}

}  // namespace mbq
