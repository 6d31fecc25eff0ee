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

// The rows of an 8 x 8 matrix of bits, a byte each, become its columns (Warren, Hacker's Delight, 7-3).
MBQ_HD uint64_t transpose_bits(uint64_t x) {
  uint64_t swap = (x ^ (x >> 7)) & 0x00AA00AA00AA00AA;
  x ^= swap ^ (swap << 7);
  swap = (x ^ (x >> 14)) & 0x0000CCCC0000CCCC;
  x ^= swap ^ (swap << 14);
  swap = (x ^ (x >> 28)) & 0x00000000F0F0F0F0;
  return x ^ swap ^ (swap << 28);
}

// A word of eight unsigned codes for every byte column of `count` planes.
template <int count>
struct FromPlanes {
  MBQ_HD void operator()(const uint8_t* __restrict planes, int64_t stride, uint64_t* __restrict codes,
                         int64_t words) const {
    for (int64_t i = 0; i < words; ++i) {
      uint64_t bits = 0;
      for (int p = 0; p < count; ++p) bits |= static_cast<uint64_t>(planes[p * stride + i]) << (8 * (count - 1 - p));
      codes[i] = transpose_bits(bits);
    }
  }
};

template <int count>
struct ToPlanes {
  MBQ_HD void operator()(const uint64_t* __restrict codes, uint8_t* __restrict planes, int64_t stride,
                         int64_t words) const {
    for (int64_t i = 0; i < words; ++i) {
      const uint64_t bits = transpose_bits(codes[i]);
      for (int p = 0; p < count; ++p) planes[p * stride + i] = static_cast<uint8_t>(bits >> (8 * (count - 1 - p)));
    }
  }
};

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
