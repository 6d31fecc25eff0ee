// switched_linear on the CPU: y = x @ x_hat.T + bias, x_hat = clamp(round(code / 2^D), lo, hi) * scale * 2^D, straight
// from int8 codes or bit planes (Huang et al., 2025, arXiv 2502.01199, eq. 1-3), and the gradient of x.
#include <algorithm>
#include <vector>

#include "cpu/engine/stored_codes.h"
#include "simd/code_tiles.h"

namespace mbq {
namespace {

constexpr const char* kOp = "switched_linear";
constexpr int64_t kChunk = 64;       // rows of x whose sums are kept at once
constexpr int64_t kGroup = 32;       // rows of the weight that share a read of x
constexpr int64_t kLaneSum = 1024;   // columns whose products are added in one lane
constexpr int64_t kColumns = 512;    // columns of the weight in one task of the gradient
constexpr int64_t kGrain = 1 << 16;  // products worth a thread

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// scale * 2^D for every output
std::vector<float> steps(const Tensor& scale, int64_t outputs, int64_t high_bits, int64_t bits) {
  check(scale.scalar_type() == ScalarType::Float && scale.is_cpu() && (scale.numel() == 1 || scale.numel() == outputs),
        kOp, ": scale must be float32 with 1 or ", outputs, " elements on the CPU, got ", scale.numel());
  const Tensor kept = make_contiguous(scale);
  const float* values = static_cast<const float*>(kept.const_data_ptr());
  for (int64_t i = 0; i < scale.numel(); ++i)
    check(std::isfinite(values[i]) && values[i] > 0, kOp, ": scale must be finite and > 0, got ", values[i],
          " (element ", i, ")");
  std::vector<float> result(outputs);
  for (int64_t n = 0; n < outputs; ++n)
    result[n] = values[scale.numel() == 1 ? 0 : n] * static_cast<float>(1 << (high_bits - bits));
  return result;
}

// visit(m, n, value) for every element of a matrix, in float32
template <class Visit>
void each_element(const Tensor& x, const Visit& visit) {
  check(x.is_cpu() && x.dim() == 2 && x.scalar_type() != ScalarType::Double, kOp,
        ": x must be a matrix of float32, bfloat16 or float16 on the CPU");
  const Tensor kept = make_contiguous(x);
  dispatch_floats(kOp, x.scalar_type(), [&](auto zero) {
    const auto* from = static_cast<const decltype(zero)*>(kept.const_data_ptr());
    for (int64_t m = 0; m < x.size(0); ++m)
      for (int64_t n = 0; n < x.size(1); ++n) visit(m, n, static_cast<float>(*from++));
  });
}

// sums (rows, batch, lanes) += codes times x over n columns; x from its first row and column on
void dot(const int8_t* codes, int64_t code_stride, int64_t rows, const float* x, int64_t stride, int64_t batch,
         int64_t n, float* sums, NextRows next) {
  const auto tiles = [&]<int r_step, int m_step>() {
    for (int64_t m = 0; m < batch; m += m_step)
      for (int64_t r = 0; r < rows; r += r_step) {
        const auto go = [&](auto fetched) {
          run<DotTile<r_step, m_step, decltype(fetched)>>(codes + r * code_stride, code_stride, x + m * stride, stride,
                                                          n, sums + (r * batch + m) * kLanes16, batch, fetched);
        };
        m == 0 ? go(next.below(r)) : go(NoRows{});
      }
  };
  const bool wide = isa() == Isa::v4;  // twice the registers, of four times baseline's width
  if (batch == 1) return wide ? tiles.template operator()<4, 1>() : tiles.template operator()<2, 1>();
  return wide ? tiles.template operator()<4, 4>() : tiles.template operator()<2, 2>();
}

// sums (rows, batch, lanes) of `rows` rows of the weight from `first` on, `piece` columns at a time; codes: memory for
// them
void dot_rows(StoredCodes& weight, int64_t first, int64_t rows, int64_t piece, const float* x, int64_t stride,
              int64_t batch, std::vector<int8_t>& codes, std::vector<float>& sums) {
  sums.assign(rows * batch * kLanes16, 0.0f);
  const int8_t* stored = weight.in_place(first, rows);
  for (int64_t k = 0; k < weight.columns; k += piece) {
    const int64_t n = std::min(piece, weight.columns - k);
    for (int64_t r = 0; r < rows && stored == nullptr; ++r) weight.read(first + r, k, n, &codes[r * piece]);
    const int8_t* from = stored ? stored + k : codes.data();
    const bool more = k + piece < weight.columns;
    NextRows next = more ? weight.next(first, k + piece) : weight.next(first + rows, 0);
    for (int64_t at = 0; at < n; at += kLaneSum) {
      dot(from + at, stored ? weight.row_stride() : piece, rows, x + k + at, stride, batch,
          round_up(std::min(kLaneSum, n - at), kBlock64), sums.data(), next);
      next = next.after(kLaneSum);
    }
  }
}

double lane_sum(const float* lanes) {
  double sum = 0;
  for (int l = 0; l < kLanes16; ++l) sum += lanes[l];
  return sum;
}

Tensor switched_linear_forward(const Tensor& x, const Tensor& store, const Tensor& scale,
                               const std::optional<Tensor>& bias, int64_t high_bits, int64_t bits, bool half_up) {
  check(x.dim() == 2, kOp, ": x must be a matrix");
  const int64_t count = x.size(0), stride = round_up(x.size(1), kBlock64);
  StoredCodes weight(kOp, store, x.size(1), high_bits, bits, half_up);
  const int64_t outputs = weight.rows, group = count == 1 ? 4 : kGroup, piece = count == 1 ? kPiece : kLaneSum;
  const std::vector<float> step = steps(scale, outputs, high_bits, bits);
  check(!bias || (bias->scalar_type() == ScalarType::Float && bias->is_cpu() && bias->numel() == outputs), kOp,
        ": bias must be float32 with ", outputs, " elements on the CPU");
  std::vector<float> wide(round_up(count, 4) * stride), shift(outputs);  // zeros where x has no row or column
  each_element(x, [&](int64_t m, int64_t k, float value) { wide[m * stride + word_order(k)] = value; });
  if (bias) std::copy_n(static_cast<const float*>(make_contiguous(*bias).const_data_ptr()), outputs, shift.begin());
  Tensor y = torch::stable::new_empty(x, {count, outputs});
  const int64_t grain = kGrain / std::max<int64_t>(1, group * stride * count) + 1;
  dispatch_floats(kOp, x.scalar_type(), [&](auto zero) {
    auto* out = static_cast<decltype(zero)*>(y.mutable_data_ptr());
    torch::stable::parallel_for(0, (outputs + group - 1) / group, grain, [&](int64_t begin, int64_t end) {
      std::vector<int8_t> codes(group * piece);
      std::vector<float> sums;
      for (int64_t first = begin * group; first < std::min(end * group, outputs); first += group)
        for (int64_t m = 0; m < count; m += kChunk) {
          const int64_t live = std::min(kChunk, count - m), batch = count == 1 ? 1 : round_up(live, 4);
          dot_rows(weight, first, group, piece, wide.data() + m * stride, stride, batch, codes, sums);
          for (int64_t n = first; n < std::min(first + group, outputs); ++n)
            for (int64_t i = 0; i < live; ++i) {
              const double total = lane_sum(&sums[((n - first) * batch + i) * kLanes16]);
              out[(m + i) * outputs + n] = static_cast<decltype(zero)>(static_cast<float>(total * step[n] + shift[n]));
            }
        }
    });
  });
  weight.check_range();
  return y;
}

// sums (batch, kColumns) of the gradient at n columns from `begin` on; grads (outputs, batch)
void outer_columns(StoredCodes& weight, int64_t begin, int64_t n, const float* grads, int64_t batch, int64_t stride,
                   std::vector<int8_t>& codes, std::vector<float>& sums) {
  sums.assign(batch * kColumns, 0.0f);
  for (int64_t first = 0; first < weight.rows; first += kGroup) {
    const int64_t rows = std::min(kGroup, weight.rows - first);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < n; k += kBlock64) weight.next(first + kGroup + r, begin).fetch(1, k);
      weight.read(first + r, begin, n, &codes[r * kColumns]);
    }
    const auto tiles = [&](auto body, int64_t m_step) {
      for (int64_t m = 0; m < batch; m += m_step)
        for (int64_t k = 0; k < n; k += kBlock64)
          run<decltype(body)>(&codes[k], kColumns, grads + first * stride + m, stride, rows, &sums[m * kColumns + k],
                              kColumns);
    };
    isa() == Isa::v4&& batch % 4 == 0 ? tiles(OuterTile<4>{}, 4) : tiles(OuterTile<1>{}, 1);
  }
}

Tensor switched_linear_backward(const Tensor& grad, const Tensor& store, const Tensor& scale, int64_t in_features,
                                int64_t high_bits, int64_t bits, bool half_up) {
  StoredCodes weight(kOp, store, in_features, high_bits, bits, half_up);
  check(grad.dim() == 2 && grad.size(1) == weight.rows, kOp, ": the gradient must have ", weight.rows, " columns");
  const std::vector<float> step = steps(scale, weight.rows, high_bits, bits);
  const int64_t count = grad.size(0), stride = count == 1 ? 1 : round_up(count, 4);
  std::vector<float> grads(weight.rows * stride);
  each_element(grad, [&](int64_t m, int64_t n, float value) { grads[n * stride + m] = value * step[n]; });
  Tensor grad_x = torch::stable::new_empty(grad, {count, in_features});
  const int64_t tasks = (in_features + kColumns - 1) / kColumns;
  dispatch_floats(kOp, grad.scalar_type(), [&](auto zero) {
    auto* out = static_cast<decltype(zero)*>(grad_x.mutable_data_ptr());
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
      std::vector<int8_t> codes(kGroup * kColumns);
      std::vector<float> sums;
      for (int64_t begin = from * kColumns; begin < std::min(to * kColumns, in_features); begin += kColumns)
        for (int64_t m = 0; m < count; m += kChunk) {
          const int64_t n = std::min(kColumns, in_features - begin), live = std::min(kChunk, count - m);
          outer_columns(weight, begin, n, grads.data() + m, std::min(kChunk, stride - m), stride, codes, sums);
          for (int64_t i = 0; i < live; ++i)
            for (int64_t k = 0; k < n; ++k)
              out[(m + i) * in_features + begin + k] = static_cast<decltype(zero)>(sums[i * kColumns + word_order(k)]);
        }
    });
  });
  weight.check_range();
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("switched_linear_forward", TORCH_BOX(&switched_linear_forward));
  m.impl("switched_linear_backward", TORCH_BOX(&switched_linear_backward));
}

}  // namespace mbq
