// Whole layers, on several threads: from one packing and bit-width to another, or to weights.
#pragma once

#include "code_block.h"

namespace mbq {

using Source = Matrix<const uint8_t>;
using Target = Matrix<uint8_t>;

enum class Rounding { half_even, half_up };

// Codes of `from` at to.bits, in to.packing. False where a code of `from` is not in its range; `to` is then undefined.
bool recode(const Source& from, const Target& to, Rounding rounding, int64_t threads);

// out[row][i] = code at `bits` * scale[row] + offset[row]; offset may be null. False as above.
bool dequantize(const Source& from, int bits, Rounding rounding, const float* scale, const float* offset, float* out,
                int64_t threads);

}  // namespace mbq
