// A weight stored as int8 codes or as bit planes, read in pieces of a row as int8 codes of the bit-width in use. A
// piece stays in the first-level cache: no code but those stored is written to memory.
#pragma once

#include <atomic>
#include <cstring>

#include "../quant_math.h"
#include "../tensor.h"
#include "isa.h"

namespace mbq {

constexpr int64_t kPiece = 1024;  // codes of a row at a time, a multiple of 512
constexpr int kMaxPlanes = 8;

struct SwitchPiece {
  MBQ_HD void operator()(const int8_t* from, int8_t* to, int64_t n, CodeSwitch lower) const {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(lower(static_cast<int16_t>(from[i])));
  }
};

struct OutOfRange {
  MBQ_HD void operator()(const int8_t* codes, int64_t n, int8_t hi, bool* found) const {
    int8_t outside = 0;
    for (int64_t i = 0; i < n; ++i) outside |= (codes[i] > hi) | (codes[i] < -hi - 1);
    *found = outside != 0;
  }
};

typedef uint64_t PlaneWords __attribute__((vector_size(64), may_alias));

struct SwitchPlanes {
  MBQ_HD void operator()(uint64_t* planes, int64_t stride, int64_t words, CodeSwitch lower) const {
    for (int64_t w = 0; w < words; w += 8) lower(reinterpret_cast<PlaneWords*>(planes + w), stride / 8);
  }
};

// to = the codes whose bits are the planes, 64 codes a word
struct JoinPlanes {
  MBQ_HD void operator()(const uint64_t* planes, int64_t stride, int64_t words, int bits, int8_t* to) const {
    for (int64_t i = 0; i < words * 8; ++i) {
      uint64_t codes = 0;  // eight, a byte each
      for (int p = 0; p < bits; ++p) {
        const uint64_t byte = reinterpret_cast<const uint8_t*>(planes + p * stride)[i];
        const uint64_t apart = (byte * 0x0101010101010101) & 0x8040201008040201;  // bit j in byte j
        const uint64_t bit = ((apart + 0x7f7f7f7f7f7f7f7f) >> 7) & 0x0101010101010101;
        codes = p == 0 ? bit * 0xff : ((codes & 0x7f7f7f7f7f7f7f7f) << 1) | bit;  // the sign goes all the way up
      }
      std::memcpy(to + i * 8, &codes, 8);
    }
  }
};

#if defined(__x86_64__)
// A word of a plane is a mask of 64 codes here: two instructions a plane instead of some forty.
__attribute__((target("avx512f,avx512bw"))) inline void join_planes_v4(const uint64_t* planes, int64_t stride,
                                                                       int64_t words, int bits, int8_t* to) {
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t w = 0; w < words; ++w) {
    __m512i codes = _mm512_movm_epi8(planes[w]);
    for (int p = 1; p < bits; ++p) {
      codes = _mm512_add_epi8(codes, codes);
      codes = _mm512_mask_add_epi8(codes, planes[p * stride + w], codes, one);
    }
    _mm512_storeu_si512(to + w * 64, codes);
  }
}
#endif

inline void join_planes(const uint64_t* planes, int64_t stride, int64_t words, int bits, int8_t* to) {
#if defined(__x86_64__)
  if (isa() == Isa::v4) return join_planes_v4(planes, stride, words, bits, to);
#endif
  run<JoinPlanes>(planes, stride, words, bits, to);
}

class StoredCodes {
 public:
  const int64_t rows, columns;

  StoredCodes(const char* op, const Tensor& store, int64_t columns, int64_t high_bits, int64_t bits, bool half_up)
      : rows(store.dim() < 2 ? 0 : store.size(store.dim() - 2)),
        columns(columns),
        op_(op),
        high_bits_(high_bits),
        lower_{static_cast<int>(bits), static_cast<int>(high_bits - bits), half_up} {
    check(2 <= bits && bits <= high_bits && high_bits <= kMaxPlanes, op,
          ": bits must be between 2 and high_bits, and those at most 8, got ", bits, " and ", high_bits);
    const bool codes = store.scalar_type() == ScalarType::Char && store.dim() == 2;
    is_planes_ = store.scalar_type() == ScalarType::Byte && store.dim() == 3;
    check(store.is_cpu() && (codes || is_planes_), op, ": store must be int8 codes or uint8 planes on the CPU");
    check(!is_planes_ || store.size(0) >= lower_.planes(), op, ": store must have ", lower_.planes(), " planes");
    row_bytes_ = is_planes_ ? (columns + 7) / 8 : columns;
    check(columns >= 0 && store.size(store.dim() - 1) == row_bytes_, op, ": store must have rows of ", row_bytes_);
    kept_ = make_contiguous(store);
    data_ = static_cast<const char*>(kept_.const_data_ptr());
  }

  // to[0 .. n rounded up to 64) = codes of a row from column `begin`, a multiple of 64; nothing definite behind the
  // row's end, nor where the row does not exist.
  void read(int64_t row, int64_t begin, int64_t n, int8_t* to) {
    if (row >= rows) return static_cast<void>(std::memset(to, 0, (n + 63) / 64 * 64));
    if (is_planes_) return read_planes(row, begin, n, to);
    const int8_t* from = reinterpret_cast<const int8_t*>(data_) + row * row_bytes_ + begin;
    fetch(from + kPiece, std::min(kPiece, columns - begin - n));
    if (high_bits_ < 8) {
      bool found = false;
      run<OutOfRange>(from, n, static_cast<int8_t>((1 << (high_bits_ - 1)) - 1), &found);
      if (found) out_of_range_ = true;
    }
    lower_.drop == 0 ? static_cast<void>(std::memcpy(to, from, n)) : run<SwitchPiece>(from, to, n, lower_);
    std::memset(to + n, 0, -n & 63);
  }

  // After all reads; in between, a thread cannot throw.
  void check_range() const {
    check(!out_of_range_, op_, ": store must hold codes of ", high_bits_, " bits, [", -(1 << (high_bits_ - 1)), ", ",
          (1 << (high_bits_ - 1)) - 1, "], got others");
  }

 private:
  // The next piece of a row comes after pieces of other rows: the processor does not see it coming.
  static void fetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
  }

  void read_planes(int64_t row, int64_t begin, int64_t n, int8_t* to) const {
    constexpr int64_t stride = kPiece / 64;
    alignas(64) uint64_t planes[kMaxPlanes * stride] = {};
    const int64_t words = (n + 63) / 64, bytes = (n + 7) / 8;
    for (int p = 0; p < lower_.planes(); ++p) {
      const char* from = data_ + (p * rows + row) * row_bytes_ + begin / 8;
      fetch(from + kPiece / 8, std::min(kPiece, columns - begin - n) / 8);
      std::memcpy(planes + p * stride, from, bytes);
    }
    run<SwitchPlanes>(planes, stride, words, lower_);
    join_planes(planes, stride, words, lower_.bits, to);
  }

  const char* op_;
  int64_t high_bits_;
  CodeSwitch lower_;
  bool is_planes_;
  int64_t row_bytes_;
  Tensor kept_;
  const char* data_;
  std::atomic<bool> out_of_range_ = false;
};

}  // namespace mbq
