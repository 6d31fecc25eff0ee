// What the integer ops do with codes one by one: visits of the walks of walk.cuh. Host code too, where the tests run
// it.
#pragma once

#include "walk.cuh"

namespace mbq::cuda {

// out = clamp(round(code / 2^D), lo, hi), over a run of codes (walk.cuh).
struct SwitchCodes {
  const int8_t* codes;
  int8_t* out;
  Bounds<int> from;
  Switch to;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<int8_t, count> code[batch];
    load_batch(codes + i, step, code);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int j = 0; j < count; ++j)
        code[b].at[j] = static_cast<int8_t>(switch_code(clamp(static_cast<int>(code[b].at[j]), from.lo, from.hi), to));
      store(out + i + b * step, code[b]);
    }
  }
};

// out = clamp(round(code / 2^D), lo, hi) * 2^D * scale
template <class Out>
struct DequantizeVisit {
  const int8_t* codes;
  Out* out;
  DequantizeCodes<float> quantizer;
  float scale;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<int8_t, count> code[batch];
    load_batch(codes + i, step, code);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<Out, count> values;
#pragma unroll
      for (int j = 0; j < count; ++j) values.at[j] = static_cast<Out>(quantizer.value_of(code[b].at[j], scale));
      store(out + i + b * step, values);
    }
  }
};

}  // namespace mbq::cuda
