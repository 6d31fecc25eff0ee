#include "convert.h"

#include "threads.h"

namespace mbq {
namespace {

constexpr int64_t kTask = 1 << 17;         // codes a thread takes at a time: more would leave others waiting at the end
constexpr int64_t kThread = 1 << 21;       // codes worth a thread: with fewer it takes longer to start than to work
constexpr int64_t kStreamBytes = 1 << 22;  // larger results go past the cache, or their lines would be read first

// body(row, column, n) -> bool for every block of the layer; whether all were true.
template <class Body>
bool for_each_block(int64_t rows, int64_t columns, int64_t threads, const Body& body) {
  const int64_t per_row = (columns + kCodeBlock - 1) / kCodeBlock, blocks = rows * per_row;
  if (blocks == 0) return true;
  const int64_t per_task = std::max<int64_t>(1, kTask / std::min(columns, kCodeBlock));
  threads = std::min(threads, 1 + rows * columns / kThread);
  std::atomic<bool> good{true};
  run_tasks((blocks + per_task - 1) / per_task, threads, [&](int64_t task) {
    const int64_t begin = task * per_task, end = std::min(blocks, begin + per_task);
    int64_t row = begin / per_row, column = begin % per_row * kCodeBlock;
    bool all = true;
    for (int64_t block = begin; block < end; ++block) {
      all &= body(row, column, std::min(kCodeBlock, columns - column));
      column += kCodeBlock;
      if (column < columns) continue;
      column = 0;
      ++row;
    }
    finish_streams();
    if (!all) good.store(false, std::memory_order_relaxed);
  });
  return good;
}

Switch switch_to(const Source& from, int bits, Rounding rounding) {
  return switching(from.bits, bits, rounding == Rounding::half_even);
}

bool past_cache(int64_t bytes) { return kHasStreams && bytes > kStreamBytes; }

// Bytes need no rows, and short rows would cost a call each.
template <class M>
M as_one_row(M matrix) {
  matrix.columns *= matrix.rows;
  matrix.rows = 1;
  return matrix;
}

bool recode_blocks(const Source& from, const Target& to, Rounding rounding, int64_t threads) {
  const Switch rule = switch_to(from, to.bits, rounding);
  const bool streams = past_cache(to.bytes());
  return for_each_block(from.rows, from.columns, threads, [&](int64_t row, int64_t column, int64_t n) {
    Codes codes;
    const int8_t* source = read_block(from, row, column, n, codes);
    const bool good = in_range(from, source, n);
    const auto convert = [&](auto form) { convert_block(source, to.at(row, column), n, rule, form, streams); };
    if (to.packing == Packing::codes)
      convert(AsCodes{});
    else if (to.packing == Packing::packed)
      with_chunk<AsFields>(to.bits, to.is_signed, convert);
    else {
      if (rule.shift != 0 || source != codes.values) convert_block(source, codes.bytes(), n, rule, AsCodes{}, false);
      split_block(to, row, column, n, codes);
    }
    return good;
  });
}

}  // namespace

bool recode(const Source& from, const Target& to, Rounding rounding, int64_t threads) {
  const bool bytes = from.packing == Packing::codes && to.packing == Packing::codes;
  return bytes ? recode_blocks(as_one_row(from), as_one_row(to), rounding, threads)
               : recode_blocks(from, to, rounding, threads);
}

bool dequantize(const Source& from, int bits, Rounding rounding, const float* scale, const float* offset, float* out,
                int64_t threads) {
  const Switch rule = switch_to(from, bits, rounding);
  const bool streams = past_cache(from.rows * from.columns * sizeof(float));
  return for_each_block(from.rows, from.columns, threads, [&](int64_t row, int64_t column, int64_t n) {
    Codes codes;
    const int8_t* source = read_block(from, row, column, n, codes);
    const bool good = in_range(from, source, n);
    uint8_t* to = reinterpret_cast<uint8_t*>(out + row * from.columns + column);
    const float shift = offset == nullptr ? 0.0f : offset[row];
    if (from.is_signed)
      convert_block(source, to, n, rule, AsWeights<int8_t>{scale[row], shift}, streams);
    else
      convert_block(source, to, n, rule, AsWeights<uint8_t>{scale[row], shift}, streams);
    return good;
  });
}

}  // namespace mbq
