// Tensors through PyTorch's stable ABI: memory layout, allocation, checks. Shared by csrc/cpu and csrc/cuda.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace mbq {

// Throws what Python sees as RuntimeError, with the message alone: no file, no line.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype of the arithmetic on a storage type.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using wide_t = typename Wide<T>::type;

// Calls body with a value of the storage type that `dtype` names. (A function, because dispatch macros do not nest.)
template <class Body>
void dispatch_floats(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::BFloat16:
      return body(c10::BFloat16{});
    case ScalarType::Half:
      return body(c10::Half{});
    case ScalarType::Double:
      return body(double{});
    default:
      check(false, op, ": dtype must be float32, bfloat16, float16 or float64");
  }
}

// A dense tensor in memory order: element i belongs to channel (i / inner) % channels.
struct Layout {
  int64_t outer, channels, inner;
  int64_t numel() const { return outer * channels * inner; }
};

// Dimensions of x from the slowest to the fastest in memory; those of size 0 and 1 have no place and come first.
inline std::vector<int64_t> memory_order(const Tensor& x) {
  std::vector<int64_t> order(x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) order[d] = d;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (x.size(a) < 2 || x.size(b) < 2) return x.size(a) < 2 && x.size(b) >= 2;
    return x.stride(a) > x.stride(b);
  });
  return order;
}

// Whether x's elements fill one block of memory, in whatever order of dimensions.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous()) return true;  // finding the order takes longer than a small kernel
  const std::vector<int64_t> order = memory_order(x);
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (x.size(*d) < 2) break;
    if (x.stride(*d) != expected) return false;
    expected *= x.size(*d);
  }
  return true;
}

// The index, in the order of its dimensions, of the element at place `at` in the memory of a dense x.
inline int64_t index_at(const Tensor& dense, int64_t at) {
  int64_t index = 0, below = dense.numel();
  for (int64_t d = 0; d < dense.dim(); ++d) {
    below /= dense.size(d);
    if (dense.size(d) > 1) index += at / dense.stride(d) % dense.size(d) * below;
  }
  return index;
}

inline Layout layout_of(const char* op, const Tensor& dense, std::optional<int64_t> axis) {
  if (!axis) return {1, 1, dense.numel()};
  check(0 <= *axis && *axis < dense.dim(), op, ": axis must be between 0 and ", dense.dim(), ", got ", *axis);
  Layout layout{1, dense.size(*axis), 1};
  if (layout.channels < 2) return {1, layout.channels, dense.numel()};
  if (dense.is_contiguous() && dense.numel() > 0) {
    for (int64_t d = 0; d < dense.dim(); ++d)
      if (d != *axis) (d > *axis ? layout.inner : layout.outer) *= dense.size(d);
    return layout;
  }
  bool faster = false;
  for (int64_t d : memory_order(dense)) {
    if (d == *axis) {
      faster = true;
    } else {
      (faster ? layout.inner : layout.outer) *= dense.size(d);
    }
  }
  return layout;
}

inline bool same_memory_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// x, or a dense copy of it with the strides that torch.empty_like gives.
inline Tensor dense(const Tensor& x) {
  if (is_dense(x)) return x;
  Tensor copy = torch::stable::empty_like(x);
  torch::stable::copy_(copy, x);
  return copy;
}

// An uninitialised tensor on the device of `other`, without the trip through the dispatcher that new_empty takes.
inline Tensor allocate_strided(const Tensor& other, int64_t dims, const int64_t* sizes, const int64_t* strides,
                               ScalarType dtype) {
  const auto dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(other.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(other.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype_code, device_type, device_index, &handle));
  return Tensor(handle);
}

// Such a tensor of `count` elements.
inline Tensor allocate_row(const Tensor& other, int64_t count, ScalarType dtype) {
  const int64_t stride = 1;
  return allocate_strided(other, 1, &count, &stride, dtype);
}

// Such a tensor with the sizes and strides of `dense`.
inline Tensor allocate_like(const Tensor& dense, ScalarType dtype) {
  return allocate_strided(dense, dense.dim(), dense.sizes().data(), dense.strides().data(), dtype);
}

inline Tensor allocate_like(const Tensor& dense) { return allocate_like(dense, dense.scalar_type()); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device() == b.get_device();
}

// The gradient of a dense tensor in that tensor's memory order.
inline Tensor aligned(const char* op, const Tensor& grad, const Tensor& dense) {
  check(std::equal(grad.sizes().begin(), grad.sizes().end(), dense.sizes().begin(), dense.sizes().end()) &&
            same_device(grad, dense),
        op, ": the gradient must have x's shape and device");
  if (same_memory_order(grad, dense)) return grad;
  Tensor copy = allocate_like(dense, grad.scalar_type());
  torch::stable::copy_(copy, grad);
  return copy;
}

inline Tensor make_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// A tensor without elements, in the place of the gradient of a parameter that is absent.
inline Tensor none_like(const Tensor& x) { return allocate_row(x, 0, x.scalar_type()); }

}  // namespace mbq
