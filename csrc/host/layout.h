// The three ways the codes of a layer lie in memory: csrc/host's only knowledge of bits within bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../cpu/isa.h"
#include "../quant_math.h"

namespace mbq {

static_assert(std::endian::native == std::endian::little, "codes move between bytes and 64-bit words");

// codes: a byte each. planes: (bits, rows, ceil(columns / 8)), two's complement, most significant plane first.
// packed: (rows, ceil(columns * bits / 8)) with fields of 1, 2 or 4 bits, two's complement; the field of a signed 1-bit
// code is (code + 1) / 2. Low bits come first within a byte; the last byte of a row is filled with zeros.
enum class Layout { codes, planes, packed };

// A layer: `rows` output channels of `columns` codes.
template <class Byte>
struct Matrix {
  Layout layout;
  Byte* data;
  int64_t rows, columns;
  int bits;
  bool is_signed;

  // Of n codes of a row that begin at its start or at a multiple of 8.
  int64_t bytes_of(int64_t n) const {
    if (layout == Layout::codes) return n;
    return layout == Layout::planes ? (n + 7) / 8 : (n * bits + 7) / 8;
  }
  int64_t plane_bytes() const { return rows * bytes_of(columns); }
  int64_t bytes() const { return plane_bytes() * (layout == Layout::planes ? bits : 1); }
  Byte* at(int64_t row, int64_t column) const { return data + row * bytes_of(columns) + bytes_of(column); }
  bool binary() const { return is_signed && bits == 1; }
};

constexpr int64_t kPlaneBytes = 64;  // of every plane at a time: a cache line
constexpr int64_t kPlaneCodes = 8 * kPlaneBytes;

// Eight rows of bytes. Byte j of all rows, taken together, is a matrix of 8 x 8 bits.
struct alignas(64) Rows {
  uint64_t words[kPlaneCodes / 8];
  MBQ_HD uint8_t* row(int i) { return reinterpret_cast<uint8_t*>(words) + i * kPlaneBytes; }
};

// In every matrix, swaps the blocks of `distance` x `distance` bits beside the diagonal.
template <int distance, uint64_t mask>
MBQ_HD void swap_blocks(Rows& rows) {
  constexpr int64_t kRow = kPlaneBytes / 8;
#pragma GCC unroll 4
  for (int pair = 0; pair < 4; ++pair) {
    const int row = pair / distance * 2 * distance + pair % distance;
    uint64_t *upper = rows.words + row * kRow, *lower = upper + distance * kRow;
    for (int64_t i = 0; i < kRow; ++i) {
      const uint64_t swap = ((upper[i] >> distance) ^ lower[i]) & mask;
      lower[i] ^= swap;
      upper[i] ^= swap << distance;
    }
  }
}

// Transposes every matrix (Warren, Hacker's Delight, 7-3).
MBQ_HD void transpose_bits(Rows& rows) {
  swap_blocks<4, 0x0F0F0F0F0F0F0F0F>(rows);
  swap_blocks<2, 0x3333333333333333>(rows);
  swap_blocks<1, 0x5555555555555555>(rows);
}

// The halves of `from`, byte by byte in turn: three times makes a column of every eight bytes, one of each row.
MBQ_HD void interleave_halves(const uint8_t* __restrict from, uint8_t* __restrict to) {
  for (int64_t i = 0; i < kPlaneCodes / 2; ++i) to[2 * i] = from[i], to[2 * i + 1] = from[kPlaneCodes / 2 + i];
}

MBQ_HD void separate_halves(const uint8_t* __restrict from, uint8_t* __restrict to) {
  for (int64_t i = 0; i < kPlaneCodes / 2; ++i) to[i] = from[2 * i], to[kPlaneCodes / 2 + i] = from[2 * i + 1];
}

// Codes of `bits` planes of `bytes` bytes, in steps of kPlaneCodes. Row b of the matrices is bit b of the codes.
struct FromPlanes {
  MBQ_HD void operator()(const uint8_t* planes, int64_t stride, int bits, bool is_signed, uint8_t* codes,
                         int64_t bytes) const {
    for (int64_t begin = 0; begin < bytes; begin += kPlaneBytes, codes += kPlaneCodes) {
      const int64_t n = bytes - begin < kPlaneBytes ? bytes - begin : kPlaneBytes;
      Rows rows, other;
      for (int b = 0; b < 8; ++b) {
        const uint8_t* plane = planes + (b < bits ? bits - 1 - b : 0) * stride + begin;
        if (b >= bits && !is_signed)
          std::memset(rows.row(b), 0, kPlaneBytes);
        else if (n == kPlaneBytes)
          std::memcpy(rows.row(b), plane, kPlaneBytes);
        else
          std::memcpy(rows.row(b), plane, n);
      }
      transpose_bits(rows);
      interleave_halves(rows.row(0), other.row(0));
      interleave_halves(other.row(0), rows.row(0));
      interleave_halves(rows.row(0), codes);
    }
  }
};

// The other way.
struct ToPlanes {
  MBQ_HD void operator()(const uint8_t* codes, uint8_t* planes, int64_t stride, int bits, int64_t bytes) const {
    for (int64_t begin = 0; begin < bytes; begin += kPlaneBytes, codes += kPlaneCodes) {
      const int64_t n = bytes - begin < kPlaneBytes ? bytes - begin : kPlaneBytes;
      Rows rows, other;
      separate_halves(codes, rows.row(0));
      separate_halves(rows.row(0), other.row(0));
      separate_halves(other.row(0), rows.row(0));
      transpose_bits(rows);
      for (int b = 0; b < bits; ++b) {
        uint8_t* plane = planes + (bits - 1 - b) * stride + begin;
        n == kPlaneBytes ? std::memcpy(plane, rows.row(b), kPlaneBytes) : std::memcpy(plane, rows.row(b), n);
      }
    }
  }
};

// Codes of fields, as unsigned numbers.
template <int bits>
struct FromFields {
  MBQ_HD void operator()(const uint8_t* __restrict fields, int8_t* __restrict codes, int64_t bytes) const {
    for (int64_t i = 0; i < bytes; ++i)
      for (int k = 0; k < 8 / bits; ++k) codes[i * (8 / bits) + k] = (fields[i] >> (k * bits)) & ((1 << bits) - 1);
  }
};

template <int bits>
struct ToFields {
  MBQ_HD void operator()(const int8_t* __restrict codes, uint8_t* __restrict fields, int64_t bytes) const {
    for (int64_t i = 0; i < bytes; ++i) {
      uint8_t byte = 0;
      for (int k = 0; k < 8 / bits; ++k) byte |= (codes[i * (8 / bits) + k] & ((1 << bits) - 1)) << (k * bits);
      fields[i] = byte;
    }
  }
};

// Unsigned numbers of `bits` bits become two's complement.
struct ExtendSign {
  MBQ_HD void operator()(int8_t* codes, int bits, int64_t n) const {
    const int8_t sign = static_cast<int8_t>(1 << (bits - 1));
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>((codes[i] ^ sign) - sign);
  }
};

// Fields of signed 1 bit: 0 and 1 stand for -1 and +1.
struct FromBinary {
  MBQ_HD void operator()(int8_t* codes, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(2 * codes[i] - 1);
  }
};

struct ToBinary {
  MBQ_HD void operator()(int8_t* codes, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>((codes[i] + 1) >> 1);
  }
};

// body(value) with the value as a constant of the compiler's; `value` is one of `values`.
template <int... values, class Body>
inline void with_constant(int value, Body body) {
  ((value == values ? body(std::integral_constant<int, values>{}) : void()), ...);
}

}  // namespace mbq
