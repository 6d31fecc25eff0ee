// The CUDA loops of csrc/cuda/engine/code_rows.cuh on the host, one lane a warp: for
// tests/test_switched_linear_on_host.py.
#include "cuda/engine/code_rows.cuh"

using namespace mbq;
using namespace mbq::cuda;

extern "C" void code_rows(const uint8_t* store, int64_t rows, int64_t columns, int64_t row_bytes, int planes,
                          int high_bits, int bits, bool half_up, bool aligned, const float* scale, const float* x,
                          int64_t count, float* y, const float* grad, float* grad_x) {
  const StoredRows weight{
      store, rows, columns, row_bytes, planes, high_bits, bits, switching(high_bits, bits, !half_up), aligned};
  constexpr int lanes = 3, batch = 2;
  for (int64_t first = 0; first < count; first += batch) {
    for (int64_t row = 0; row < rows; ++row) {
      float total[batch] = {};
      for (int lane = 0; lane < lanes; ++lane) dot_row<batch>(weight, row, x, first, count, lane, lanes, total);
      for (int m = 0; m < batch && first + m < count; ++m)
        y[(first + m) * rows + row] = total[m] * scale[row] * static_cast<float>(1 << weight.lower.shift);
    }
    for (int64_t k = 0; k < columns; ++k) dot_column<batch>(weight, k, scale, false, grad, first, count, grad_x);
  }
}
