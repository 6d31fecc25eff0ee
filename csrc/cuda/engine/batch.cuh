// Many items in one launch: they are the kernel's argument, which a CUDA graph keeps, and every block works for one.
#pragma once

#include <cstdint>

#include "math/quant_math.h"

namespace mbq::cuda {

// Bytes of arguments that a launch takes; 4096 before CUDA 12.1.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int kArgumentBytes = 4096;
#else
constexpr int kArgumentBytes = 32764;
#endif

template <class Item, int capacity>
struct Batch {
  int count = 0;
  unsigned first_block[capacity + 1] = {};  // of every item, and the end
  Item items[capacity];

  bool takes(int64_t blocks) const { return count < capacity && first_block[count] + blocks < int64_t{1} << 31; }

  void add(const Item& item, int64_t blocks) {
    items[count] = item;
    first_block[count + 1] = first_block[count] + static_cast<unsigned>(blocks);
    ++count;
  }

  // The item that `block` works for.
  MBQ_HD int item_of(unsigned block) const {
    if (capacity == 1) return 0;
    int low = 0, high = count;  // first_block[low] <= block < first_block[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

// As many items as the arguments of a launch have room for.
template <class Item>
constexpr int kBatch = static_cast<int>((kArgumentBytes - 32) / (sizeof(Item) + sizeof(unsigned)));

}  // namespace mbq::cuda
