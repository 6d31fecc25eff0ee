// to_planes and from_planes on the CPU: plane p holds bit (bits - 1 - p) of every code, eight codes a byte.
#include "bytes.h"
#include "switch_codes.h"

namespace mbq {
namespace {

// A byte for every plane of eight codes; what a row lacks of its last eight counts as 0.
struct SplitChunk {
  MBQ_HD void operator()(const uint8_t* __restrict codes, uint8_t* const* planes, int64_t n, int planes_count) const {
    const int64_t whole = n / kWord, left = n % kWord;
    alignas(64) uint64_t words[kChunk / kWord + 1];
    for (int64_t i = 0; i < whole; ++i) {
      std::memcpy(&words[i], codes + i * kWord, kWord);
      words[i] = transpose_bits(words[i]);
    }
    if (left > 0) {
      words[whole] = 0;
      std::memcpy(&words[whole], codes + whole * kWord, left);
      words[whole] = transpose_bits(words[whole]);
    }
    for (int p = 0; p < planes_count; ++p) {
      uint8_t* __restrict plane = planes[p];
      const int bit = 8 * (planes_count - 1 - p);
      for (int64_t i = 0; i < whole + (left > 0); ++i) plane[i] = static_cast<uint8_t>(words[i] >> bit);
    }
  }
};

// Codes times 2^(8 - bits) from their first `count` planes: planes that are not read count as 0.
struct JoinChunk {
  MBQ_HD void operator()(const uint8_t* const* planes, uint8_t* __restrict codes, int64_t n, int count) const {
    const int64_t whole = (n + kWord - 1) / kWord;
    alignas(64) uint64_t words[kChunk / kWord];
    for (int64_t i = 0; i < whole; ++i) words[i] = 0;
    for (int p = 0; p < count; ++p) {
      const uint8_t* __restrict plane = planes[p];
      for (int64_t i = 0; i < whole; ++i) words[i] |= static_cast<uint64_t>(plane[i]) << 8 * (7 - p);
    }
    for (int64_t i = 0; i < whole; ++i) words[i] = transpose_bits(words[i]);
    std::memcpy(codes, words, n);
  }
};

Tensor to_planes_forward(const Tensor& given_codes, int64_t bits) {
  const char* op = "to_planes";
  check_codes(op, given_codes, true);
  RangeCheck<int8_t> range(op, bits);
  const Tensor codes = make_contiguous(given_codes);
  const CodeRows given(op, codes.sizes()), rows = given.joined(kWord);
  std::vector<int64_t> shape = with_last(shape_of(codes), given.bytes(kWord));
  shape.insert(shape.begin(), bits);
  const Tensor planes = torch::stable::new_empty(codes, shape, ScalarType::Byte);
  const int8_t* from = static_cast<const int8_t*>(codes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(planes.mutable_data_ptr());
  const int64_t plane_bytes = given.rows * given.bytes(kWord);
  const bool large = is_large(planes.numel());
  for_each_chunk(rows, [&](int64_t row, int64_t begin, int64_t n) {
    const int8_t* source = from + row * rows.n + begin;
    range.see(source, n);
    const int64_t bytes = (n + kWord - 1) / kWord, offset = row * rows.bytes(kWord) + begin / kWord;
    alignas(64) uint8_t made[8][kChunk / kWord];
    uint8_t* targets[8];
    for (int64_t p = 0; p < bits; ++p) targets[p] = large ? made[p] : to + p * plane_bytes + offset;
    run<SplitChunk>(reinterpret_cast<const uint8_t*>(source), static_cast<uint8_t* const*>(targets), n,
                    static_cast<int>(bits));
    for (int64_t p = 0; large && p < bits; ++p) stream(made[p], to + p * plane_bytes + offset, bytes);
  });
  range.finish(from, codes.numel());
  return planes;
}

Tensor from_planes_forward(const Tensor& given_planes, int64_t high_bits, int64_t bits, bool half_even,
                           std::vector<int64_t> shape) {
  const char* op = "from_planes";
  check_bytes(op, "planes", given_planes);
  checked_switch(op, high_bits, bits, half_even);
  const Switch to_low = switching(8, bits, half_even);  // JoinChunk gives codes of 8 bits
  const Tensor planes = make_contiguous(given_planes);
  const CodeRows given(op, shape), rows = given.joined(kWord);
  const int64_t plane_bytes = given.rows * given.bytes(kWord), count = planes_read(high_bits, bits, half_even);
  check_planes(op, planes, plane_bytes, count, high_bits);
  const Tensor codes = torch::stable::new_empty(planes, shape, ScalarType::Char);
  const uint8_t* from = static_cast<const uint8_t*>(planes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const bool large = is_large(codes.numel());
  for_each_chunk(rows, [&](int64_t row, int64_t begin, int64_t n) {
    alignas(64) uint8_t high[kChunk];
    const uint8_t* sources[8];
    for (int64_t p = 0; p < count; ++p) sources[p] = from + p * plane_bytes + row * rows.bytes(kWord) + begin / kWord;
    run<JoinChunk>(static_cast<const uint8_t* const*>(sources), static_cast<uint8_t*>(high), n,
                   static_cast<int>(count));
    put(to + row * rows.n + begin, n, large,
        [&](uint8_t* at) { switch_codes(reinterpret_cast<const int8_t*>(high), at, n, to_low); });
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("to_planes_forward", TORCH_BOX(&to_planes_forward));
  m.impl("from_planes_forward", TORCH_BOX(&from_planes_forward));
}

}  // namespace mbq
