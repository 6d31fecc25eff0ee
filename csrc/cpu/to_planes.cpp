// to_planes and from_planes on the CPU: plane p holds bit (bits - 1 - p) of every code, eight codes a byte.
#include "cpu/engine/bytes.h"
#include "simd/planes.h"

namespace mbq {
namespace {

using Planes = uint8_t[8][kChunkWords];

// n codes, filled up.
int64_t whole_steps(int64_t n) { return (n + kPlaneCodes - 1) / kPlaneCodes * kPlaneCodes; }

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
    alignas(64) uint8_t last[kChunk];
    alignas(64) Planes made;
    const int8_t* whole = source;
    if (n % kPlaneCodes != 0) {
      std::memcpy(last, source, n);
      std::memset(last + n, 0, whole_steps(n) - n);
      whole = reinterpret_cast<const int8_t*>(last);
    }
    split_planes(reinterpret_cast<const uint8_t*>(whole), made[0], kChunkWords, static_cast<int>(bits), bytes);
    for (int64_t p = 0; p < bits; ++p) deliver(made[p], to + p * plane_bytes + offset, bytes, large);
  });
  range.finish(from, codes.numel());
  return planes;
}

Tensor from_planes_forward(const Tensor& given_planes, int64_t high_bits, int64_t bits, bool half_even,
                           std::vector<int64_t> shape) {
  const char* op = "from_planes";
  check_bytes(op, "planes", given_planes);
  checked_switch(op, high_bits, bits, half_even);
  const Tensor planes = make_contiguous(given_planes);
  const CodeRows given(op, shape), rows = given.joined(kWord);
  const int64_t plane_bytes = given.rows * given.bytes(kWord), count = planes_read(high_bits, bits, half_even);
  check_planes(op, planes, plane_bytes, count, high_bits);
  const Tensor codes = torch::stable::new_empty(planes, shape, ScalarType::Char);
  const uint8_t* from = static_cast<const uint8_t*>(planes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const bool large = is_large(codes.numel());
  for_each_chunk(rows, [&](int64_t row, int64_t begin, int64_t n) {
    const int64_t bytes = (n + kWord - 1) / kWord, offset = row * rows.bytes(kWord) + begin / kWord;
    const uint8_t* read = from + offset;
    int64_t stride = plane_bytes;
    alignas(64) Planes rounded;
    alignas(64) uint8_t made[kChunk];
    if (count > bits) {
      run<RoundPlanes>(read, stride, bytes, static_cast<int>(bits), static_cast<int>(count), half_even, rounded[0],
                       kChunkWords);
      read = rounded[0];
      stride = kChunkWords;
    }
    join_planes(read, stride, static_cast<int>(bits), true, made, bytes);
    deliver(made, to + row * rows.n + begin, n, large);
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("to_planes_forward", TORCH_BOX(&to_planes_forward));
  m.impl("from_planes_forward", TORCH_BOX(&from_planes_forward));
}

}  // namespace mbq
