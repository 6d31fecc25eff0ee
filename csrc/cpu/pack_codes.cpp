// pack_codes and unpack_codes on the CPU: 8 / bits codes a byte, the first one in its low bits.
#include "bytes.h"

namespace mbq {
namespace {

constexpr int64_t per_byte(int bits) { return 8 / bits; }

// Eight codes become `bits` bytes; what a row lacks of its last eight counts as fields of 0.
template <int bits, bool is_signed>
struct PackChunk {
  static constexpr bool kSigned = is_signed;
  MBQ_HD void operator()(const uint8_t* __restrict codes, uint8_t* __restrict to, int64_t n) const {
    const int64_t whole = n / kWord, left = n % kWord;
    for (int64_t i = 0; i < whole; ++i) {
      uint64_t word;
      std::memcpy(&word, codes + i * kWord, kWord);
      word = gather_fields(to_fields(word, bits, is_signed), bits);
      std::memcpy(to + i * bits, &word, bits);
    }
    if (left == 0) return;
    uint64_t word = 0;
    std::memcpy(&word, codes + whole * kWord, left);
    word = gather_fields(to_fields(word, bits, is_signed) & ((uint64_t{1} << 8 * left) - 1), bits);
    std::memcpy(to + whole * bits, &word, (left + per_byte(bits) - 1) / per_byte(bits));
  }
};

template <int bits, bool is_signed>
struct UnpackChunk {
  static constexpr bool kSigned = is_signed;
  MBQ_HD void operator()(const uint8_t* __restrict packed, uint8_t* __restrict to, int64_t n) const {
    const int64_t whole = n / kWord, left = n % kWord;
    for (int64_t i = 0; i < whole; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, packed + i * bits, bits);
      word = from_fields(spread_fields(word, bits), bits, is_signed);
      std::memcpy(to + i * kWord, &word, kWord);
    }
    if (left == 0) return;
    uint64_t word = 0;
    std::memcpy(&word, packed + whole * bits, (left + per_byte(bits) - 1) / per_byte(bits));
    word = from_fields(spread_fields(word, bits), bits, is_signed);
    std::memcpy(to + whole * kWord, &word, left);
  }
};

// Calls body with the Chunk of `bits` and `is_signed`.
template <template <int, bool> class Chunk, class Body>
void dispatch(const char* op, int64_t bits, bool is_signed, const Body& body) {
  check(bits == 1 || bits == 2 || bits == 4, op, ": bits must be 1, 2 or 4, got ", bits);
  if (bits == 1) return is_signed ? body(Chunk<1, true>{}) : body(Chunk<1, false>{});
  if (bits == 2) return is_signed ? body(Chunk<2, true>{}) : body(Chunk<2, false>{});
  return is_signed ? body(Chunk<4, true>{}) : body(Chunk<4, false>{});
}

Tensor pack_codes_forward(const Tensor& given_codes, int64_t bits, bool is_signed) {
  const char* op = "pack_codes";
  check_codes(op, given_codes, is_signed);
  const Tensor codes = make_contiguous(given_codes);
  Tensor packed;
  dispatch<PackChunk>(op, bits, is_signed, [&](auto chunk) {
    using Code = std::conditional_t<decltype(chunk)::kSigned, int8_t, uint8_t>;
    const int64_t per = per_byte(static_cast<int>(bits));
    const CodeRows given(op, codes.sizes()), rows = given.joined(per);
    packed = torch::stable::new_empty(codes, with_last(shape_of(codes), given.bytes(per)), ScalarType::Byte);
    const uint8_t* from = static_cast<const uint8_t*>(codes.const_data_ptr());
    uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
    RangeCheck<Code> range(op, bits);
    const bool large = is_large(packed.numel());
    for_each_chunk(rows, [&](int64_t row, int64_t begin, int64_t n) {
      const uint8_t* source = from + row * rows.n + begin;
      range.see(reinterpret_cast<const Code*>(source), n);
      put(to + row * rows.bytes(per) + begin / per, (n + per - 1) / per, large,
          [&](uint8_t* at) { run<decltype(chunk)>(source, at, n); });
    });
    range.finish(reinterpret_cast<const Code*>(from), codes.numel());
  });
  return packed;
}

Tensor unpack_codes_forward(const Tensor& given_packed, int64_t bits, bool is_signed, std::vector<int64_t> shape) {
  const char* op = "unpack_codes";
  check_bytes(op, "packed", given_packed);
  const Tensor packed = make_contiguous(given_packed);
  Tensor codes;
  dispatch<UnpackChunk>(op, bits, is_signed, [&](auto chunk) {
    const int64_t per = per_byte(static_cast<int>(bits));
    const CodeRows given(op, shape), rows = given.joined(per);
    check(packed.numel() == given.rows * given.bytes(per), op, ": packed has ", packed.numel(),
          " bytes, but its shape needs ", given.rows * given.bytes(per));
    codes = torch::stable::new_empty(packed, shape, is_signed ? ScalarType::Char : ScalarType::Byte);
    const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
    uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
    const bool large = is_large(codes.numel());
    for_each_chunk(rows, [&](int64_t row, int64_t begin, int64_t n) {
      put(to + row * rows.n + begin, n, large,
          [&](uint8_t* at) { run<decltype(chunk)>(from + row * rows.bytes(per) + begin / per, at, n); });
    });
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("pack_codes_forward", TORCH_BOX(&pack_codes_forward));
  m.impl("unpack_codes_forward", TORCH_BOX(&unpack_codes_forward));
}

}  // namespace mbq
