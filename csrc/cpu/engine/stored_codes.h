// A weight stored as int8 codes or as bit planes, read in pieces of a row as int8 codes of the bit-width in use. A
// piece stays in the first-level cache: no code but those stored is written to memory.
#pragma once

#include <atomic>
#include <cstring>

#include "arguments/codes.h"
#include "simd/code_tiles.h"
#include "simd/code_words.h"
#include "simd/planes.h"

namespace mbq {

constexpr int64_t kPiece = 4096;  // the most codes of a row at a time, a multiple of 512

struct OutOfRange {
  MBQ_HD void operator()(const int8_t* codes, int64_t n, int8_t hi, bool* found) const {
    int8_t outside = 0;
    for (int64_t i = 0; i < n; ++i) outside |= (codes[i] > hi) | (codes[i] < -hi - 1);
    *found = outside != 0;
  }
};

class StoredCodes {
 public:
  const int64_t rows, columns;

  StoredCodes(const char* op, const Tensor& store, int64_t columns, int64_t high_bits, int64_t bits, bool half_up)
      : rows(store.dim() < 2 ? 0 : store.size(store.dim() - 2)),
        columns(columns),
        op_(op),
        high_bits_(high_bits),
        bits_(static_cast<int>(bits)),
        planes_(static_cast<int>(planes_read(high_bits, bits, !half_up))),
        lower_(checked_switch(op, high_bits, bits, !half_up)) {
    const bool codes = store.scalar_type() == ScalarType::Char && store.dim() == 2;
    is_planes_ = store.scalar_type() == ScalarType::Byte && store.dim() == 3;
    check(store.is_cpu() && (codes || is_planes_), op, ": store must be int8 codes or uint8 planes on the CPU");
    check(!is_planes_ || store.size(0) >= planes_, op, ": store must have ", planes_, " planes");
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
    if (high_bits_ < 8) {
      bool found = false;
      run<OutOfRange>(from, n, static_cast<int8_t>((1 << (high_bits_ - 1)) - 1), &found);
      if (found) out_of_range_ = true;
    }
    if (lower_.shift > 0) {
      switch_codes(from, to, n, lower_);
    } else {
      std::memcpy(to, from, n);
    }
    std::memset(to + n, 0, -n & 63);
  }

  // Where `count` rows lie from `first` on, row_stride() apart, if their codes are those asked for; else null.
  const int8_t* in_place(int64_t first, int64_t count) const {
    if (is_planes_ || lower_.shift > 0 || high_bits_ < 8 || columns % 64 != 0 || first + count > rows) return nullptr;
    return reinterpret_cast<const int8_t*>(data_) + first * row_bytes_;
  }

  int64_t row_stride() const { return row_bytes_; }

  // Rows from `row` on, from column `begin`, a multiple of 512.
  NextRows next(int64_t row, int64_t begin) const {
    return {data_ + row * row_bytes_ + (is_planes_ ? begin / 8 : begin), row_bytes_, rows * row_bytes_,
            is_planes_ ? planes_ : 0};
  }

  // After all reads; in between, a thread cannot throw.
  void check_range() const {
    check(!out_of_range_, op_, ": store must hold codes of ", high_bits_, " bits, [", -(1 << (high_bits_ - 1)), ", ",
          (1 << (high_bits_ - 1)) - 1, "], got others");
  }

 private:
  void read_planes(int64_t row, int64_t begin, int64_t n, int8_t* to) const {
    const int64_t bytes = (n + 7) / 8;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(data_) + row * row_bytes_ + begin / 8;
    int64_t stride = rows * row_bytes_;
    alignas(64) uint8_t rounded[kPiece];
    if (planes_ > bits_) {
      run<RoundPlanes>(from, stride, bytes, bits_, planes_, lower_.odd != 0, static_cast<uint8_t*>(rounded),
                       kPiece / 8);
      from = rounded;
      stride = kPiece / 8;
    }
    join_planes(from, stride, bits_, true, reinterpret_cast<uint8_t*>(to), bytes);
  }

  const char* op_;
  int64_t high_bits_;
  int bits_, planes_;
  Switch lower_;
  bool is_planes_;
  int64_t row_bytes_;
  Tensor kept_;
  const char* data_;
  std::atomic<bool> out_of_range_ = false;
};

}  // namespace mbq
