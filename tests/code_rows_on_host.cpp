// The CUDA loops of csrc/cuda/engine/code_rows.cuh and code_tiles.cuh on the host: for
// tests/test_switched_linear_on_host.py.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/engine/code_tiles.cuh"

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

template <class T>
float number(uint32_t word, int half) {
  T numbers[2];
  memcpy(numbers, &word, sizeof(word));
  return static_cast<float>(numbers[half]);
}

// What mma.m16n8k16 does with what all lanes hold, in the layout of the PTX manual.
template <class T>
void multiply(const Fragments (&lanes)[32], int step, double (&sums)[16][8]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, within = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[group + (i / 2 % 2) * 8][within * 2 + i % 2 + i / 4 * 8] = number<T>(lanes[lane].codes[step][i / 2], i % 2);
    for (int i = 0; i < 4; ++i) b[within * 2 + i % 2 + i / 2 * 8][group] = number<T>(lanes[lane].x[step][i / 2], i % 2);
  }
  for (int n = 0; n < 16; ++n)
    for (int m = 0; m < 8; ++m)
      for (int k = 0; k < 16; ++k) sums[n][m] += static_cast<double>(a[n][k]) * b[k][m];
}

template <bool of_planes, class T>
void run_tiles(const StoredRows& weight, const float* scale, const T* x, int64_t count, double* y) {
  const RowProducts<T> products{weight, x, count, weight.columns % 8 == 0};
  for (int64_t row = 0; row < weight.rows; row += kTileRows) {
    for (int64_t first = 0; first < count; first += kTileBatch) {
      double sums[16][8] = {};
      for (int64_t k = 0; k < weight.columns; k += kTileColumns) {
        Fragments lanes[32];
        for (int lane = 0; lane < 32; ++lane)
          TileProducts<of_planes, T>{products, row, first, lane}.read(k, lanes[lane]);
        for (int step = 0; step < kTileSteps; ++step) multiply<T>(lanes, step, sums);
      }
      for (int n = 0; n < 16 && row + n < weight.rows; ++n)
        for (int m = 0; m < 8 && first + m < count; ++m)
          y[(first + m) * weight.rows + row + n] = sums[n][m] * scale[row + n] * weight.step;
    }
  }
}

template <class T>
void code_tiles(const uint8_t* store, int64_t rows, int64_t columns, int64_t row_bytes, int planes, int high_bits,
                int bits, bool half_up, bool aligned, const float* scale, const T* x, int64_t count, double* y) {
  const StoredRows weight(store, rows, columns, row_bytes, planes, high_bits, bits,
                          switching(high_bits, bits, !half_up), aligned);
  (planes > 0 ? run_tiles<true, T> : run_tiles<false, T>)(weight, scale, x, count, y);
}

#define MBQ_TILES(name, T)                                                                                      \
  extern "C" void code_tiles_##name(const uint8_t* store, int64_t rows, int64_t columns, int64_t row_bytes,     \
                                    int planes, int high_bits, int bits, bool half_up, bool aligned,            \
                                    const float* scale, const T* x, int64_t count, double* y) {                 \
    code_tiles(store, rows, columns, row_bytes, planes, high_bits, bits, half_up, aligned, scale, x, count, y); \
  }
MBQ_TILES(bfloat16, c10::BFloat16)
MBQ_TILES(float16, c10::Half)
