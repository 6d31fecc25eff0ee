// Integer codes and what they are packed into, as the raw operators receive them. Shared by csrc/cpu and csrc/cuda.
#pragma once

#include <bit>

#include "math/code_math.h"
#include "tensor.h"

namespace mbq {

static_assert(std::endian::native == std::endian::little, "codes are taken eight at a time, the first one lowest");

constexpr int64_t kWord = 8;  // codes taken at a time

inline void check_codes(const char* op, const Tensor& codes, bool is_signed) {
  check(codes.scalar_type() == (is_signed ? ScalarType::Char : ScalarType::Byte), op, ": codes must be ",
        is_signed ? "int8" : "uint8");
}

inline void check_bytes(const char* op, const char* name, const Tensor& bytes) {
  check(bytes.scalar_type() == ScalarType::Byte, op, ": ", name, " must be uint8");
}

inline Bounds<int> code_range(const char* op, int64_t bits, bool is_signed) {
  check(1 <= bits && bits <= 8, op, ": bits must be between 1 and 8, got ", bits);
  return bounds<int>(bits, is_signed);
}

inline Switch checked_switch(const char* op, int64_t from_bits, int64_t to_bits, bool half_even) {
  check(2 <= to_bits && to_bits <= from_bits && from_bits <= 8, op, ": cannot switch from ", from_bits, " to ", to_bits,
        " bits");
  return switching(from_bits, to_bits, half_even);
}

// Codes of `shape` as rows of n in the order of their indices; every row of what they are packed into begins a byte.
struct CodeRows {
  int64_t rows = 1, n = 1;

  template <class Shape>
  CodeRows(const char* op, const Shape& shape) {
    check(shape.size() > 0, op, ": codes must have at least one dimension");
    n = shape.back();
    for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
  }

  // Rows that end with a byte follow each other without a gap: they are one.
  CodeRows joined(int64_t codes_per_byte) const {
    CodeRows one = *this;
    if (n % codes_per_byte == 0) {
      one.n *= one.rows;
      one.rows = 1;
    }
    return one;
  }

  int64_t bytes(int64_t codes_per_byte) const { return (n + codes_per_byte - 1) / codes_per_byte; }
};

// Planes that a switch to `bits` reads: half up decides by the highest bit that it drops.
inline int64_t planes_read(int64_t high_bits, int64_t bits, bool half_even) {
  return half_even ? high_bits : std::min(bits + 1, high_bits);
}

inline void check_planes(const char* op, const Tensor& planes, int64_t bytes, int64_t read, int64_t high_bits) {
  const int64_t count = planes.dim() > 0 ? planes.size(0) : 0;
  check(read <= count && count <= high_bits && planes.numel() == count * bytes, op, ": planes must be ", read, " to ",
        high_bits, " of ", bytes, " bytes");
}

inline std::vector<int64_t> with_last(std::vector<int64_t> shape, int64_t size) {
  shape.back() = size;
  return shape;
}

inline std::vector<int64_t> shape_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

}  // namespace mbq
