// The CUDA loops of csrc/cuda/engine/codes.cuh and words.cuh on the host: for tests/test_codes_on_host.py.
#include <torch/headeronly/util/BFloat16.h>

#include "cuda/engine/codes.cuh"
#include "cuda/engine/words.cuh"

namespace {

using namespace mbq;
using namespace mbq::cuda;

struct Arguments {
  const void* from;
  void* to;
  const float* scale;
  int64_t outer, channels, inner;  // words: rows, 1, codes in a row
  int from_bits, to_bits, threads;
  bool half_even, aligned;
};

template <int width, class Visit, class Prepare>
void walk(const Arguments& a, Visit visit, const Prepare& prepare) {
  const Walk walk(a.outer, a.channels, a.inner);
  for (int64_t task = 0; task < walk.tasks; ++task) {
    prepare(visit, walk.channel_of(task));
    if (!walk.by_run)
      walk_column(walk, task, visit);
    else
      for (int lane = 0; lane < a.threads; ++lane) walk_run<width, 4>(walk, task, lane, a.threads, a.aligned, visit);
  }
}

template <class Out>
void dequantize(const Arguments& a) {
  const Switch low = switching(a.from_bits, a.to_bits, a.half_even);
  const DequantizeVisit<Out> visit{static_cast<const int8_t*>(a.from),
                                   static_cast<Out*>(a.to),
                                   {bounds<int>(a.from_bits, true), low, static_cast<float>(1 << low.shift)},
                                   0.0f};
  walk<kPack<Out>>(a, visit, [&](auto& v, int64_t channel) { v.scale = a.scale[channel]; });
}

template <class Body, class... More>
void words(const Arguments& a, const More&... more) {
  const Body body{
      {a.outer, a.inner, a.aligned}, static_cast<const uint8_t*>(a.from), static_cast<uint8_t*>(a.to), more...};
  const int64_t each = static_cast<int64_t>(a.threads) * kWords;
  for (int64_t block = 0; block < (body.words.count() + each - 1) / each; ++block)
    for (int thread = 0; thread < a.threads; ++thread) walk_words(body.words, block, thread, a.threads, body);
}

}  // namespace

extern "C" void switch_bits(const Arguments* a) {
  const SwitchCodes visit{static_cast<const int8_t*>(a->from), static_cast<int8_t*>(a->to),
                          bounds<int>(a->from_bits, true), switching(a->from_bits, a->to_bits, a->half_even)};
  walk<16>(*a, visit, [](auto&, int64_t) {});
}

extern "C" void dequantize_float32(const Arguments* a) { dequantize<float>(*a); }
extern "C" void dequantize_bfloat16(const Arguments* a) { dequantize<c10::BFloat16>(*a); }

#define MBQ_PACKING(bits, name, is_signed)                                                         \
  extern "C" void pack_##name##bits(const Arguments* a) { words<PackWords<bits, is_signed>>(*a); } \
  extern "C" void unpack_##name##bits(const Arguments* a) { words<UnpackWords<bits, is_signed>>(*a); }
MBQ_PACKING(1, int, true)
MBQ_PACKING(2, int, true)
MBQ_PACKING(4, int, true)
MBQ_PACKING(1, uint, false)
MBQ_PACKING(2, uint, false)
MBQ_PACKING(4, uint, false)

#define MBQ_PLANES(planes) \
  extern "C" void to_planes##planes(const Arguments* a) { words<SplitWords<planes>>(*a); }
MBQ_PLANES(2)
MBQ_PLANES(3)
MBQ_PLANES(5)
MBQ_PLANES(8)

// by the bits of the codes and the planes that are read
#define MBQ_CODES(bits, planes) \
  extern "C" void from_planes##bits##planes(const Arguments* a) { words<JoinWords<bits, planes>>(*a, a->half_even); }
MBQ_CODES(2, 2)
MBQ_CODES(2, 3)
MBQ_CODES(2, 8)
MBQ_CODES(3, 5)
MBQ_CODES(5, 5)
MBQ_CODES(7, 8)
MBQ_CODES(8, 8)
