// The CUDA loops of csrc/cuda/engine/code_rows.cuh on the host, one lane a warp: for
// tests/test_switched_linear_on_host.py.
#include "cuda/engine/code_rows.cuh"

using namespace mbq;
using namespace mbq::cuda;

template <bool of_planes>
void run(const StoredRows& weight, const float* scale, const float* x, int64_t count, float* y, const float* grad,
         float* grad_x) {
  constexpr int lanes = 3, share = 2, batch = 2;
  const RowProducts<float> products{weight, x, count, weight.columns % 4 == 0};
  for (int64_t first = 0; first < count; first += batch) {
    for (int64_t row = 0; row < weight.rows; row += share) {
      float total[share * batch] = {};
      for (int lane = 0; lane < lanes; ++lane) products.dot<share, batch, of_planes>(row, first, lane, lanes, total);
      for (int r = 0; r < share && row + r < weight.rows; ++r)
        for (int m = 0; m < batch && first + m < count; ++m)
          y[(first + m) * weight.rows + row + r] = total[r * batch + m] * scale[row + r] * weight.step;
    }
    for (int64_t k = 0; k < weight.columns; ++k) dot_column<batch>(weight, k, scale, false, grad, first, count, grad_x);
  }
}

extern "C" void code_rows(const uint8_t* store, int64_t rows, int64_t columns, int64_t row_bytes, int planes,
                          int high_bits, int bits, bool half_up, bool aligned, const float* scale, const float* x,
                          int64_t count, float* y, const float* grad, float* grad_x) {
  const StoredRows weight(store, rows, columns, row_bytes, planes, high_bits, bits,
                          switching(high_bits, bits, !half_up), aligned);
  (planes > 0 ? run<true> : run<false>)(weight, scale, x, count, y, grad, grad_x);
}
