// The three ways the codes of a layer lie in memory: csrc/host's only knowledge of bits within bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "simd/code_words.h"
#include "simd/planes.h"

namespace mbq {

static_assert(std::endian::native == std::endian::little, "codes move between bytes and 64-bit words");

// codes: a byte each. planes: (bits, rows, ceil(columns / 8)), two's complement, most significant plane first.
// packed: (rows, ceil(columns * bits / 8)) with fields of 1, 2 or 4 bits, two's complement; the field of a signed 1-bit
// code is (code + 1) / 2. Low bits come first within a byte; the last byte of a row is filled with zeros.
enum class Packing { codes, planes, packed };

// A layer: `rows` output channels of `columns` codes.
template <class Byte>
struct Matrix {
  Packing packing;
  Byte* data;
  int64_t rows, columns;
  int bits;
  bool is_signed;

  // Of n codes of a row that begin at its start or at a multiple of 8.
  int64_t bytes_of(int64_t n) const {
    if (packing == Packing::codes) return n;
    return packing == Packing::planes ? (n + 7) / 8 : (n * bits + 7) / 8;
  }
  int64_t plane_bytes() const { return rows * bytes_of(columns); }
  int64_t bytes() const { return plane_bytes() * (packing == Packing::planes ? bits : 1); }
  Byte* at(int64_t row, int64_t column) const { return data + row * bytes_of(columns) + bytes_of(column); }
  bool binary() const { return is_signed && bits == 1; }
};

}  // namespace mbq
