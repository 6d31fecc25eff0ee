// Codes to bit planes and back on the CPU, 64 codes at a time: they are eight bytes of every plane.
#pragma once

#include "isa.h"
#include "math/code_math.h"

namespace mbq {

constexpr int64_t kPlaneCodes = 64;

typedef uint64_t PlaneBlock __attribute__((vector_size(32)));

// `count` planes of `bytes` bytes, `stride` apart, to `bits` rounded ones, to_stride apart in memory for full
// PlaneBlocks; those may be where the planes are.
struct RoundPlanes {
  MBQ_HD void operator()(const uint8_t* planes, int64_t stride, int64_t bytes, int bits, int count, bool half_even,
                         uint8_t* to, int64_t to_stride) const {
    for (int64_t i = 0; i < bytes; i += sizeof(PlaneBlock)) {
      PlaneBlock blocks[8] = {};
      if (const int64_t rest = bytes - i; rest < static_cast<int64_t>(sizeof(PlaneBlock))) {
        for (int p = 0; p < count; ++p) std::memcpy(&blocks[p], planes + p * stride + i, rest);
      } else {
        for (int p = 0; p < count; ++p) std::memcpy(&blocks[p], planes + p * stride + i, sizeof(PlaneBlock));
      }
      round_planes(blocks, bits, count, half_even);
      for (int p = 0; p < bits; ++p) std::memcpy(to + p * to_stride + i, &blocks[p], sizeof(PlaneBlock));
    }
  }
};

// The first `bytes` of eight; the last word of a plane may be shorter.
inline void store_bytes(uint64_t word, uint8_t* to, int64_t bytes) {
  if (bytes >= 8) {
    std::memcpy(to, &word, 8);
  } else {
    std::memcpy(to, &word, bytes);
  }
}

inline uint64_t load_bytes(const uint8_t* from, int64_t bytes) {
  uint64_t word = 0;
  if (bytes >= 8) {
    std::memcpy(&word, from, 8);
  } else {
    std::memcpy(&word, from, bytes);
  }
  return word;
}

// Words of eight codes at a time: loops that the compiler makes vectors of.
constexpr int64_t kPlaneWords = 128;

inline void split_planes_baseline(const uint8_t* codes, uint8_t* planes, int64_t stride, int bits, int64_t bytes) {
  uint64_t words[kPlaneWords];
  for (int64_t at = 0; at < bytes; at += kPlaneWords) {
    const int64_t n = std::min(kPlaneWords, bytes - at);
    std::memcpy(words, codes + 8 * at, 8 * n);
    for (int64_t i = 0; i < n; ++i) words[i] = transpose_bits(words[i]);
    for (int p = 0; p < bits; ++p)
      for (int64_t i = 0; i < n; ++i)
        planes[p * stride + at + i] = static_cast<uint8_t>(words[i] >> 8 * (bits - 1 - p));
  }
}

inline void join_planes_baseline(const uint8_t* planes, int64_t stride, int bits, bool is_signed, uint8_t* codes,
                                 int64_t bytes) {
  uint64_t words[kPlaneWords];
  for (int64_t at = 0; at < bytes; at += kPlaneWords) {
    const int64_t n = std::min(kPlaneWords, bytes - at);
    std::memset(words, 0, sizeof(words));
    for (int p = 0; p < bits; ++p)
      for (int64_t i = 0; i < n; ++i) words[i] = words[i] << 8 | planes[p * stride + at + i];
    for (int64_t i = 0; i < n; ++i) words[i] = codes_of_planes(words[i], bits, is_signed);
    std::memcpy(codes + 8 * at, words, 8 * n);
  }
}

#if defined(__x86_64__)
// The highest bits of all bytes are a plane; doubling the bytes brings up the next one.
__attribute__((target("avx512f,avx512bw"))) inline void split_planes_v4(const uint8_t* codes, uint8_t* planes,
                                                                        int64_t stride, int bits, int64_t bytes) {
  const __m128i unused = _mm_cvtsi32_si128(8 - bits);
  for (int64_t at = 0; at < bytes; at += 8, codes += kPlaneCodes) {
    __m512i left = _mm512_sll_epi16(_mm512_loadu_si512(codes), unused);
    for (int p = 0; p < bits; ++p, left = _mm512_add_epi8(left, left))
      store_bytes(_mm512_movepi8_mask(left), planes + p * stride + at, bytes - at);
  }
}

__attribute__((target("avx2"))) inline void split_planes_v3(const uint8_t* codes, uint8_t* planes, int64_t stride,
                                                            int bits, int64_t bytes) {
  const __m128i unused = _mm_cvtsi32_si128(8 - bits);
  for (int64_t at = 0; at < bytes; at += 8, codes += kPlaneCodes) {
    const __m256i* from = reinterpret_cast<const __m256i*>(codes);
    __m256i low = _mm256_sll_epi16(_mm256_loadu_si256(from), unused);
    __m256i high = _mm256_sll_epi16(_mm256_loadu_si256(from + 1), unused);
    for (int p = 0; p < bits; ++p) {
      const uint64_t word = static_cast<uint32_t>(_mm256_movemask_epi8(high));
      store_bytes(word << 32 | static_cast<uint32_t>(_mm256_movemask_epi8(low)), planes + p * stride + at, bytes - at);
      low = _mm256_add_epi8(low, low);
      high = _mm256_add_epi8(high, high);
    }
  }
}

// A plane masks where its bit adds to the codes.
template <int bits>
__attribute__((target("avx512f,avx512bw"))) inline __m512i join_words_v4(const uint8_t* planes, int64_t stride,
                                                                         bool is_signed) {
  constexpr int top = 1 << (bits - 1);
  const __m512i first = _mm512_set1_epi8(static_cast<char>(is_signed ? -top : top));
  __m512i codes = _mm512_maskz_mov_epi8(load_bytes(planes, 8), first);
#pragma GCC unroll 8
  for (int p = 1; p < bits; ++p)
    codes = _mm512_mask_add_epi8(codes, load_bytes(planes + p * stride, 8), codes,
                                 _mm512_set1_epi8(static_cast<char>(top >> p)));
  return codes;
}

template <int bits>
__attribute__((target("avx512f,avx512bw"))) inline void join_planes_v4(const uint8_t* planes, int64_t stride,
                                                                       bool is_signed, uint8_t* codes, int64_t bytes) {
  for (int64_t at = 0; at + 8 <= bytes; at += 8, codes += kPlaneCodes)
    _mm512_storeu_si512(codes, join_words_v4<bits>(planes + at, stride, is_signed));
  if (bytes % 8 == 0) return;
  uint8_t rest[8 * 8];
  for (int p = 0; p < bits; ++p) std::memcpy(rest + 8 * p, planes + p * stride + bytes / 8 * 8, bytes % 8);
  _mm512_storeu_si512(codes, join_words_v4<bits>(rest, 8, is_signed));
}

// -1 in every byte whose bit of `word` is set.
__attribute__((target("avx2"))) inline __m256i spread_bits_v3(uint32_t word) {
  const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)), byte);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

__attribute__((target("avx2"))) inline void join_planes_v3(const uint8_t* planes, int64_t stride, int bits,
                                                           bool is_signed, uint8_t* codes, int64_t bytes) {
  const __m256i first = _mm256_set1_epi8(is_signed ? -1 : 1);
  for (int64_t at = 0; at < bytes; at += 8, codes += kPlaneCodes) {
    const uint64_t top = load_bytes(planes + at, bytes - at);
    __m256i low = _mm256_and_si256(spread_bits_v3(static_cast<uint32_t>(top)), first);
    __m256i high = _mm256_and_si256(spread_bits_v3(static_cast<uint32_t>(top >> 32)), first);
    for (int p = 1; p < bits; ++p) {
      const uint64_t word = load_bytes(planes + p * stride + at, bytes - at);
      low = _mm256_sub_epi8(_mm256_add_epi8(low, low), spread_bits_v3(static_cast<uint32_t>(word)));
      high = _mm256_sub_epi8(_mm256_add_epi8(high, high), spread_bits_v3(static_cast<uint32_t>(word >> 32)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes) + 1, high);
  }
}
#endif

// Plane p of 8 * bytes codes, the most significant first, goes to planes + p * stride. `codes` is read in full steps of
// kPlaneCodes.
inline void split_planes(const uint8_t* codes, uint8_t* planes, int64_t stride, int bits, int64_t bytes) {
#if defined(__x86_64__)
  if (isa() == Isa::v4) return split_planes_v4(codes, planes, stride, bits, bytes);
  if (isa() == Isa::v3) return split_planes_v3(codes, planes, stride, bits, bytes);
#endif
  split_planes_baseline(codes, planes, stride, bits, bytes);
}

// The other way; `codes` is written in full steps of kPlaneCodes.
inline void join_planes(const uint8_t* planes, int64_t stride, int bits, bool is_signed, uint8_t* codes,
                        int64_t bytes) {
#if defined(__x86_64__)
  if (isa() == Isa::v4)
    return with_constant<1, 2, 3, 4, 5, 6, 7, 8>(
        bits, [&](auto b) { join_planes_v4<b>(planes, stride, is_signed, codes, bytes); });
  if (isa() == Isa::v3) return join_planes_v3(planes, stride, bits, is_signed, codes, bytes);
#endif
  join_planes_baseline(planes, stride, bits, is_signed, codes, bytes);
}

}  // namespace mbq
