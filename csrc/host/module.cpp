// mbq_store._core: what the reader and the writer of stores do to whole layers. Private: python/mbq_store checks what
// users give; here only what memory safety rests on is checked again.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "convert.h"

namespace mbq {
namespace {

namespace py = pybind11;

void check(bool good, const char* message) {
  if (!good) throw std::invalid_argument(std::string("mbq_store._core: ") + message);
}

Packing packing_of(const std::string& name) {
  check(name == "codes" || name == "planes" || name == "packed", "layout must be codes, planes or packed");
  return name == "codes" ? Packing::codes : name == "planes" ? Packing::planes : Packing::packed;
}

Rounding rounding_of(const std::string& name) {
  check(name == "half_even" || name == "half_up", "rounding must be half_even or half_up");
  return name == "half_even" ? Rounding::half_even : Rounding::half_up;
}

// Contiguous memory of exactly `bytes`, whatever its dtype.
void* memory(const py::buffer_info& info, int64_t bytes) {
  check(PyBuffer_IsContiguous(info.view(), 'C') && info.size * info.itemsize == bytes,
        "buffers must be contiguous and have the layer's size");
  return info.ptr;
}

template <class Byte>
Matrix<Byte> matrix(const py::buffer_info& info, const std::string& layout, int64_t rows, int64_t columns, int bits,
                    bool is_signed) {
  Matrix<Byte> made{packing_of(layout), nullptr, rows, columns, bits, is_signed};
  check(rows >= 0 && columns >= 0 && (rows == 0 || columns <= (int64_t{1} << 56) / rows), "sizes must be possible");
  check(1 <= bits && bits <= 8, "bits must be between 1 and 8");
  check(made.packing != Packing::packed || bits == 1 || bits == 2 || bits == 4, "packed bits must be 1, 2 or 4");
  check(made.packing != Packing::planes || !made.binary(), "signed 1-bit codes have no planes");
  made.data = static_cast<Byte*>(memory(info, made.bytes()));
  return made;
}

void check_switch(const Source& from, int bits) {
  check(1 <= bits && bits <= from.bits, "bits must not exceed those of the source");
  check(bits == from.bits || (from.is_signed && bits >= 2), "only signed codes can be switched, to 2 bits or more");
}

bool recode_buffer(const py::buffer& source, const std::string& from_layout, int from_bits, const py::buffer& out,
                   const std::string& to_layout, int to_bits, int64_t rows, int64_t columns, bool is_signed,
                   const std::string& rounding, int64_t threads) {
  const py::buffer_info from_info = source.request(), to_info = out.request(true);
  const auto from = matrix<const uint8_t>(from_info, from_layout, rows, columns, from_bits, is_signed);
  const auto to = matrix<uint8_t>(to_info, to_layout, rows, columns, to_bits, is_signed);
  const Rounding rule = rounding_of(rounding);
  check_switch(from, to_bits);
  const py::gil_scoped_release release;
  return recode(from, to, rule, threads);
}

bool dequantize_buffer(const py::buffer& source, const std::string& layout, int from_bits, const py::buffer& out,
                       int to_bits, int64_t rows, int64_t columns, bool is_signed, const std::string& rounding,
                       const py::buffer& scale, const std::optional<py::buffer>& offset, int64_t threads) {
  const py::buffer_info from_info = source.request(), to_info = out.request(true), scale_info = scale.request();
  const py::buffer_info offset_info = offset ? offset->request() : py::buffer_info();
  const auto from = matrix<const uint8_t>(from_info, layout, rows, columns, from_bits, is_signed);
  const int64_t row_floats = rows * sizeof(float);
  float* weights = static_cast<float*>(memory(to_info, columns * row_floats));
  const auto* scales = static_cast<const float*>(memory(scale_info, row_floats));
  const auto* offsets = offset ? static_cast<const float*>(memory(offset_info, row_floats)) : nullptr;
  const Rounding rule = rounding_of(rounding);
  check_switch(from, to_bits);
  const py::gil_scoped_release release;
  return dequantize(from, to_bits, rule, scales, offsets, weights, threads);
}

}  // namespace
}  // namespace mbq

PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  m.doc() = "Layers of int8 stores: switching, packing, dequantizing. Private to mbq_store.";
  m.def("recode", &mbq::recode_buffer, py::arg("source"), py::kw_only(), py::arg("from_layout"), py::arg("from_bits"),
        py::arg("out"), py::arg("to_layout"), py::arg("to_bits"), py::arg("rows"), py::arg("columns"),
        py::arg("signed"), py::arg("rounding"), py::arg("threads"),
        "Codes of `source` at to_bits into `out`; False where a code is not one of from_bits.");
  m.def("dequantize", &mbq::dequantize_buffer, py::arg("source"), py::kw_only(), py::arg("from_layout"),
        py::arg("from_bits"), py::arg("out"), py::arg("to_bits"), py::arg("rows"), py::arg("columns"),
        py::arg("signed"), py::arg("rounding"), py::arg("scale"), py::arg("offset"), py::arg("threads"),
        "Weights of `source` at to_bits into `out`; scale and offset are per row. False as `recode`.");
}
