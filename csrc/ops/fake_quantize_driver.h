// The driver of fake_quantize, fake_quantize_multi and fake_quantize_foreach, which fake_quantize_driver.cpp compiles
// once for all three.
#pragma once

#include "quantizer_driver.h"

namespace MBQ_NAMESPACE {

extern template std::vector<Tensor> quantize_forward<FakeQuantize>(const std::vector<Quantizers>&,
                                                                   std::optional<ScalarType>);
extern template Gradients quantize_backward<FakeQuantize>(const std::vector<Quantizers>&, const std::vector<Tensor>&,
                                                          std::optional<double>);

}  // namespace MBQ_NAMESPACE
