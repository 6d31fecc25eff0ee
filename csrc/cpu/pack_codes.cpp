// pack_codes and unpack_codes on the CPU: 8 / bits codes a byte, the first one in its low bits.
#include "cpu/engine/bytes.h"
#include "simd/code_words.h"

namespace mbq {
namespace {

constexpr int64_t per_byte(int bits) { return 8 / bits; }
constexpr int64_t whole_words(int64_t n) { return (n + kWord - 1) / kWord * kWord; }
static_assert(kChunk % kPackCodes == 0);

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
      alignas(64) uint8_t read[kChunk], made[kChunk];
      std::memcpy(read, source, n);
      std::memset(read + n, decltype(chunk)::kFill, whole_words(n) - n);
      fetch(source + n, n);
      run<decltype(chunk)>(static_cast<const uint8_t*>(read), static_cast<uint8_t*>(made), n);
      deliver(made, to + row * rows.bytes(per) + begin / per, (n + per - 1) / per, large);
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
      alignas(64) typename decltype(chunk)::Packed words[kChunkWords];
      alignas(64) uint64_t made[kChunkWords];
      std::memcpy(words, from + row * rows.bytes(per) + begin / per, (n + per - 1) / per);
      run<decltype(chunk)>(static_cast<const typename decltype(chunk)::Packed*>(words), static_cast<uint64_t*>(made),
                           (n + kWord - 1) / kWord);
      deliver(made, to + row * rows.n + begin, n, large);
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
