// Loops over words of eight codes on the CPU: switching, and packing into words of `bits` bytes.
#pragma once

#include "../code_math.h"
#include "isa.h"

namespace mbq {

struct SwitchChunk {
  MBQ_HD void operator()(uint64_t* words, int64_t count, Switch s) const {
    for (int64_t i = 0; i < count; ++i) words[i] = switch_words(words[i], s);
  }
};

template <int bits, bool is_signed>
struct PackChunk {
  static constexpr bool kSigned = is_signed;
  static constexpr uint64_t kFill = is_signed && bits == 1 ? ~uint64_t{0} : 0;  // codes whose fields are 0
  using Packed = packed_word_t<bits>;
  MBQ_HD void operator()(const uint64_t* __restrict codes, Packed* __restrict packed, int64_t words) const {
    for (int64_t i = 0; i < words; ++i)
      packed[i] = static_cast<Packed>(gather_fields(to_fields(codes[i], bits, is_signed), bits));
  }
};

template <int bits, bool is_signed>
struct UnpackChunk {
  static constexpr bool kSigned = is_signed;
  using Packed = packed_word_t<bits>;
  MBQ_HD void operator()(const Packed* __restrict packed, uint64_t* __restrict codes, int64_t words) const {
    for (int64_t i = 0; i < words; ++i) codes[i] = from_fields(spread_fields(packed[i], bits), bits, is_signed);
  }
};

}  // namespace mbq
