// to_planes and from_planes on CUDA: plane p holds bit (bits - 1 - p) of every code, eight codes a byte.
#include "cuda/engine/word_kernels.cuh"

namespace mbq::cuda {
namespace {

// And planes of a multiple of 16 bytes, because each begins where the last one ends.
Words words_of_planes(const CodeRows& rows, const Tensor& codes, const Tensor& planes) {
  Words words = words_of(rows, {&codes, &planes});
  words.aligned = words.aligned && words.count() % 16 == 0;
  return words;
}

Tensor to_planes_forward(const Tensor& given_codes, int64_t bits) {
  const char* op = "to_planes";
  check_codes(op, given_codes, true);
  const Launch launch(op, given_codes);
  const Tensor codes = make_contiguous(given_codes);
  std::vector<int64_t> shape = shape_of(codes);
  const CodeRows rows(op, shape);
  shape = with_last(shape, rows.bytes(kWord));
  shape.insert(shape.begin(), bits);
  const Tensor planes = torch::stable::new_empty(codes, shape, ScalarType::Byte);
  const Words words = words_of_planes(rows, codes, planes);
  dispatch_bits<2, 3, 4, 5, 6, 7, 8>(op, bits, [&](auto count) {
    launch_words(launch, SplitWords<count()>{words, static_cast<const uint8_t*>(codes.const_data_ptr()),
                                             static_cast<uint8_t*>(planes.mutable_data_ptr())});
  });
  return planes;
}

Tensor from_planes_forward(const Tensor& given_planes, int64_t high_bits, int64_t bits, bool half_even,
                           std::vector<int64_t> shape) {
  const char* op = "from_planes";
  check_bytes(op, "planes", given_planes);
  checked_switch(op, high_bits, bits, half_even);
  const Launch launch(op, given_planes);
  const Tensor planes = make_contiguous(given_planes);
  const CodeRows rows(op, shape);
  const int64_t bytes = rows.rows * rows.bytes(kWord), read = planes_read(high_bits, bits, half_even);
  check_planes(op, planes, bytes, read, high_bits);
  const Tensor codes = torch::stable::new_empty(planes, shape, ScalarType::Char);
  const Words words = words_of_planes(rows, codes, planes);
  dispatch_bits<2, 3, 4, 5, 6, 7, 8>(op, bits, [&](auto low) {
    dispatch_bits<2, 3, 4, 5, 6, 7, 8>(op, read, [&](auto count) {
      if constexpr (low() <= count())
        launch_words(launch, JoinWords<low(), count()>{words, static_cast<const uint8_t*>(planes.const_data_ptr()),
                                                       static_cast<uint8_t*>(codes.mutable_data_ptr()), half_even});
    });
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) {
  m.impl("to_planes_forward", TORCH_BOX(&to_planes_forward));
  m.impl("from_planes_forward", TORCH_BOX(&from_planes_forward));
}

}  // namespace mbq::cuda
