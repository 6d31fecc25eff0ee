// pack_codes and unpack_codes on CUDA: 8 / bits codes a byte, the first one in its low bits.
#include "cuda/engine/word_kernels.cuh"

namespace mbq::cuda {
namespace {

// Launches Body<bits, is_signed> from `from` to `to`.
template <template <int, bool> class Body>
void launch_packing(const char* op, int64_t bits, bool is_signed, const CodeRows& rows, const Tensor& from,
                    const Tensor& to) {
  const Launch launch(op, from);
  const uint8_t* source = static_cast<const uint8_t*>(from.const_data_ptr());
  uint8_t* target = static_cast<uint8_t*>(to.mutable_data_ptr());
  const Words words = words_of(rows, {&from, &to});
  dispatch_bits<1, 2, 4>(op, bits, [&](auto width) {
    if (is_signed) {
      launch_words(launch, Body<width(), true>{words, source, target});
    } else {
      launch_words(launch, Body<width(), false>{words, source, target});
    }
  });
}

Tensor pack_codes_forward(const Tensor& given_codes, int64_t bits, bool is_signed) {
  const char* op = "pack_codes";
  check_codes(op, given_codes, is_signed);
  const Tensor codes = make_contiguous(given_codes);
  const std::vector<int64_t> shape = shape_of(codes);
  const CodeRows rows(op, shape);
  const Tensor packed = torch::stable::new_empty(codes, with_last(shape, (rows.n * bits + 7) / 8), ScalarType::Byte);
  launch_packing<PackWords>(op, bits, is_signed, rows, codes, packed);
  return packed;
}

Tensor unpack_codes_forward(const Tensor& given_packed, int64_t bits, bool is_signed, std::vector<int64_t> shape) {
  const char* op = "unpack_codes";
  check_bytes(op, "packed", given_packed);
  const Tensor packed = make_contiguous(given_packed);
  const CodeRows rows(op, shape);
  const int64_t wanted = rows.rows * ((rows.n * bits + 7) / 8);
  check(packed.numel() == wanted, op, ": packed has ", packed.numel(), " bytes, but its shape needs ", wanted);
  const Tensor codes = torch::stable::new_empty(packed, shape, is_signed ? ScalarType::Char : ScalarType::Byte);
  launch_packing<UnpackWords>(op, bits, is_signed, rows, packed, codes);
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) {
  m.impl("pack_codes_forward", TORCH_BOX(&pack_codes_forward));
  m.impl("unpack_codes_forward", TORCH_BOX(&unpack_codes_forward));
}

}  // namespace mbq::cuda
