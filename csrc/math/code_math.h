// The integer arithmetic on words of eight codes, once, for host and device: switching, packed fields, bit planes.
// Twins: mbq_kernels/reference/code_math.py (codes one by one) and mbq_kernels/triton/code_math.py.
#pragma once

#include "quant_math.h"

namespace mbq {

// Eight bytes in a word, `value` in each.
MBQ_HD uint64_t every_byte(int value) { return 0x0101010101010101u * static_cast<uint64_t>(value); }

// What is stored of eight codes, one a byte: the low bits; at signed 1 bit (code + 1) / 2
MBQ_HD uint64_t to_fields(uint64_t codes, int bits, bool is_signed) {
  return (is_signed && bits == 1 ? ~codes >> 7 : codes) & every_byte((1 << bits) - 1);
}

// Its inverse: unsigned as it is, signed (field ^ s) - s, s the sign bit; at signed 1 bit 2 field - 1. The highest bit
// of every byte is set meanwhile, so that nothing is borrowed from the next byte.
MBQ_HD uint64_t from_fields(uint64_t fields, int bits, bool is_signed) {
  if (!is_signed) return fields;
  const uint64_t sign = every_byte(1 << (bits - 1)), top = every_byte(128);
  return (((bits == 1 ? fields << 1 : fields ^ sign) | top) - sign) ^ top;
}

// `count` ones at the foot of every `lane` bits of a word.
MBQ_HD uint64_t lane_mask(int lane, int count) {
  return ~uint64_t{0} / (~uint64_t{0} >> (64 - lane)) * ((uint64_t{1} << count) - 1);
}

// The fields of `count` bits at the foot of both halves of every `lane` bits, side by side at the lane's foot.
template <class Word>
MBQ_HD Word pair_fields(Word fields, int lane, int count) {
  return static_cast<Word>((fields | fields >> (lane / 2 - count)) & lane_mask(lane, 2 * count));
}

// Fields of eight bytes side by side, the first byte's lowest: `bits` bytes, bits = 1, 2 or 4
MBQ_HD uint64_t gather_fields(uint64_t fields, int bits) {
  return pair_fields(pair_fields(pair_fields(fields, 16, bits), 32, 2 * bits), 64, 4 * bits);
}

// Its inverse.
MBQ_HD uint64_t spread_fields(uint64_t packed, int bits) {
  packed = (packed | packed << (32 - 4 * bits)) & lane_mask(32, 4 * bits);
  packed = (packed | packed << (16 - 2 * bits)) & lane_mask(16, 2 * bits);
  return (packed | packed << (8 - bits)) & lane_mask(8, bits);
}

// What the fields of eight codes are packed into.
template <int bits>
struct PackedWord {
  using type = uint8_t;
};
template <>
struct PackedWord<2> {
  using type = uint16_t;
};
template <>
struct PackedWord<4> {
  using type = uint32_t;
};
template <int bits>
using packed_word_t = typename PackedWord<bits>::type;

// Bit i of byte p becomes bit p of byte i: codes to planes and back (Warren, Hacker's Delight, 7-3)
MBQ_HD uint64_t transpose_bits(uint64_t bytes) {
  uint64_t moved = (bytes ^ bytes >> 7) & 0x00AA00AA00AA00AAu;
  bytes ^= moved ^ moved << 7;
  moved = (bytes ^ bytes >> 14) & 0x0000CCCC0000CCCCu;
  bytes ^= moved ^ moved << 14;
  moved = (bytes ^ bytes >> 28) & 0x00000000F0F0F0F0u;
  return bytes ^ moved ^ moved << 28;
}

// Swaps the `count` upper bits of every 2 count bits of `a` with the lower ones of `b`; mask: the lower ones
MBQ_HD void swap_fields(uint32_t& a, uint32_t& b, int count, uint32_t mask) {
  const uint32_t low = (a & mask) | (b << count & ~mask);
  b = (a >> count & mask) | (b & ~mask);
  a = low;
}

// The same in every byte of eight words: bit i of word p becomes bit p of word i.
MBQ_HD void transpose_words(uint32_t (&words)[8]) {
  MBQ_UNROLL_8
  for (int i = 0; i < 4; ++i) swap_fields(words[i], words[i + 4], 4, 0x0F0F0F0Fu);
  MBQ_UNROLL_8
  for (int i = 0; i < 4; ++i) swap_fields(words[i + i / 2 * 2], words[i + i / 2 * 2 + 2], 2, 0x33333333u);
  MBQ_UNROLL_8
  for (int i = 0; i < 8; i += 2) swap_fields(words[i], words[i + 1], 1, 0x55555555u);
}

MBQ_HD int byte_of(uint64_t word, int i, bool is_signed) {
  const uint8_t byte = static_cast<uint8_t>(word >> (8 * i));
  return is_signed ? static_cast<int8_t>(byte) : byte;
}

// Every byte within the range.
MBQ_HD uint64_t clamp_bytes(uint64_t word, Bounds<int> range, bool is_signed) {
  uint64_t result = 0;
  for (int i = 0; i < 8; ++i)
    result |= static_cast<uint64_t>(clamp(byte_of(word, i, is_signed), range.lo, range.hi) & 255) << (8 * i);
  return result;
}

// switch_code on eight planes, the most significant first, of any word: the first `count` become `bits`. A carry runs
// through the planes that stay, from where the others round up; hi + 1, which looks like lo, goes back to hi. (Masks
// and loops of fixed length, not branches: on a GPU the planes are then registers.)
template <class Word>
MBQ_HD void round_planes(Word (&planes)[8], int bits, int count, bool half_even) {
  if (count == bits) return;
  const Word all = ~Word{}, none{}, sign = planes[0];
  Word carry{}, decides{};  // what is below a tie, or makes the quotient odd
  MBQ_UNROLL_8
  for (int p = 0; p < 8; ++p) {
    carry |= planes[p] & (p == bits ? all : none);
    decides |= planes[p] & (p == bits - 1 || (p > bits && p < count) ? all : none);
  }
  carry &= decides | (half_even ? none : all);
  MBQ_UNROLL_8
  for (int p = 7; p >= 0; --p) {
    const Word before = planes[p], add = carry & (p < bits ? all : none);
    planes[p] = before ^ add;
    carry = (before & add) | (carry & ~(p < bits ? all : none));
  }
  const Word over = planes[0] & ~sign;
  planes[0] &= ~over;
  MBQ_UNROLL_8
  for (int p = 1; p < 8; ++p) planes[p] |= over & (p < bits ? all : none);
}

// Codes from words whose byte b is plane bits - 1 - b.
MBQ_HD uint64_t codes_of_planes(uint64_t planes, int bits, bool is_signed) {
  const uint64_t fields = transpose_bits(planes);
  return bits < 8 ? from_fields(fields, bits, is_signed) : fields;
}

}  // namespace mbq
