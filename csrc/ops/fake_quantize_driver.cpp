// Compiles, once, what fake_quantize_driver.h declares.
#include "fake_quantize_driver.h"

namespace MBQ_NAMESPACE {

template std::vector<Tensor> quantize_forward<FakeQuantize>(const std::vector<Quantizers>&, std::optional<ScalarType>);
template Gradients quantize_backward<FakeQuantize>(const std::vector<Quantizers>&, const std::vector<Tensor>&,
                                                   std::optional<double>);

}  // namespace MBQ_NAMESPACE
