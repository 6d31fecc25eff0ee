// What keeps an elementwise kernel from the speed of a copy? One quantizer's kernels in variants, each change by
// itself.
//   nvcc -O3 -std=c++20 -fmad=false -arch=native -o build/stream_lab bench/stream_lab.cu && build/stream_lab
// Every variant's results are compared with those of the first of its kind, a warp's chunk and IEEE division, element
// by element, before its time is printed. A time is the median of nine replays of a CUDA graph of 24 launches over
// buffers in turn, together more than the L2 cache holds. No setting of the GPU is changed. About 15 s.
#include "stream_run.cuh"

namespace {

constexpr Order kChunk = Order::chunk, kTile = Order::tile;
constexpr Math kDivide = Math::divide, kReciprocal = Math::reciprocal, kLean = Math::lean;

// Random x, or one half 0, and gradients, in so many buffers that a turn of them is more than the L2 cache
template <class T>
void set_up(int64_t n, bool relu) {
  for (Buffers& each : lab.ring) check(cudaFree(each.x)), check(cudaFree(each.grad)), check(cudaFree(each.y));
  const int64_t bytes = n * sizeof(T), least = n < 64 * kMi ? 8 : 2;
  lab.ring.resize(std::min<int64_t>(32, std::max(least, kInTurn / (3 * bytes) + 1)));
  unsigned seed = 1;
  for (Buffers& each : lab.ring) {
    each = {memory(bytes), memory(bytes), memory(bytes)};
    const auto put = [&](void* to, float scale, bool positive) {
      float* wide = sizeof(T) == 4 ? static_cast<float*>(to) : nullptr;
      fill<<<1024, 256>>>(wide, wide ? nullptr : static_cast<bfloat16*>(to), n, seed++, scale, positive);
    };
    put(each.x, 0.4f, relu), put(each.grad, 1.0f, false);
  }
  check(cudaDeviceSynchronize());
  const auto copy = [&](size_t place) {
    const Buffers& at = lab.ring[place];
    check(cudaMemcpyAsync(at.y, at.x, bytes, cudaMemcpyDeviceToDevice, lab.stream));
  };
  const float us = time_of(copy, lab.ring.size());
  lab.copy_rate = 2.0 * bytes / us / 1e3;
  const char* name = sizeof(T) == 4 ? "float32" : "bfloat16";
  std::snprintf(lab.work, sizeof lab.work, "%s %lldMi%s", name, static_cast<long long>(n / kMi), relu ? " relu" : "");
  std::printf("%-18s copy %8.2f us %6.0f GB/s, %zu buffers\n", lab.work, us, lab.copy_rate, lab.ring.size());
}

template <class T, class R, Plan plan>
void run_forward(int64_t n, bool is_first = false) {
  const auto launch = [&](size_t place, Grid grid) {
    const T* x = static_cast<T*>(lab.ring[place].x);
    R* y = static_cast<R*>(lab.ring[place].y);
    forward<T, R, plan><<<grid.blocks, plan.threads, 0, lab.stream>>>(x, y, n, grid.chunk, lab.scale);
  };
  const double bytes = double(n) * (sizeof(T) + sizeof(R));
  run<R, plan>(sizeof(R) == 1 ? "codes" : "forward", n, kWidth<T>, bytes, n, 0, is_first, lab.ring.size(), launch);
}

template <Plan plan>
void finish_after(unsigned blocks) {
  if (plan.finish == Finish::last) return;
  if (plan.finish == Finish::warps) {
    finish<256, false><<<1, 256, 0, lab.stream>>>(lab.sinks, blocks * (plan.threads / 32));
  } else if (plan.finish == Finish::blocks) {
    finish<1024, false><<<1, 1024, 0, lab.stream>>>(lab.sinks, blocks);
  } else {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = 1, config.blockDim = 1024, config.stream = lab.stream;
    config.attrs = &early, config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, finish<1024, true>, lab.sinks, static_cast<int>(blocks)));
  }
}

template <class T, Plan plan, int levels = 1>
void run_backward(int64_t n, bool is_first = false) {
  const auto launch = [&](size_t place, Grid grid) {
    const Buffers* at = &lab.ring[place];
    Gradients<T, levels> given{static_cast<T*>(at->x), {}, static_cast<T*>(at->y), {}, {}, levels};
    for (int k = 0; k < levels; ++k) {
      given.grad[k] = static_cast<T*>(at[k].grad);
      given.lo[k] = levels == 1 ? -8.0f : -static_cast<float>(128 >> (2 * k)), given.hi[k] = -given.lo[k] - 1;
    }
    backward<T, levels, plan><<<grid.blocks, plan.threads, 0, lab.stream>>>(given, n, grid.chunk, lab.scale, lab.sinks);
    finish_after<plan>(grid.blocks);
  };
  const double bytes = double(n) * (2 + levels) * sizeof(T);
  run<T, plan>(levels == 1 ? "backward" : "4 levels", n, kWidth<T>, bytes, n, std::min(levels, 2), is_first,
               lab.ring.size() - levels + 1, launch);
}

template <class T, Plan plan>
void run_penalty(int64_t n, bool is_first = false) {
  const auto launch = [&](size_t place, Grid grid) {
    const T* x = static_cast<T*>(lab.ring[place].x);
    penalty<T, plan><<<grid.blocks, plan.threads, 0, lab.stream>>>(x, n, grid.chunk, lab.scale + 2, lab.sinks);
  };
  run<T, plan>("penalty", n, kWidth<T>, double(n) * sizeof(T), 0, 2, is_first, lab.ring.size(), launch);
}

template <class T>
void forwards(int64_t n) {
  constexpr Cache stream = Cache::stream;
  run_forward<T, T, Plan{kChunk, kDivide}>(n, true);
  run_forward<T, T, Plan{kChunk, kLean}>(n);
  run_forward<T, T, Plan{kTile, kDivide}>(n);
  run_forward<T, T, Plan{kTile, kDivide, 256, 2, 4}>(n);
  run_forward<T, T, Plan{kTile, kReciprocal, 256, 4, 4}>(n);
  run_forward<T, T, Plan{kTile, kLean, 256, 4, 4}>(n);
  run_forward<T, T, Plan{kTile, kLean, 256, 4, 4, stream}>(n);
  run_forward<T, T, Plan{kTile, kLean, 256, 2, 6}>(n);
  run_forward<T, T, Plan{kTile, kLean, 256, 1, 8}>(n);
  run_forward<T, T, Plan{kTile, kLean, 128, 4, 8}>(n);
  run_forward<T, T, Plan{kTile, kLean, 512, 2, 3, stream}>(n);
  run_forward<T, int8_t, Plan{kTile, kDivide}>(n, true);
  run_forward<T, int8_t, Plan{kTile, kLean, 256, 4, 4}>(n);
  run_forward<T, int8_t, Plan{kTile, kLean, 256, 4, 4, stream}>(n);
  run_forward<T, int8_t, Plan{kTile, kLean, 256, 8, 4}>(n);
}

template <class T>
void backwards(int64_t n) {
  constexpr Cache plain = Cache::plain, stream = Cache::stream;
  run_backward<T, Plan{kChunk, kDivide, 256, 2, 1, plain, Finish::warps}>(n, true);
  run_backward<T, Plan{kChunk, kLean, 256, 2, 1, plain, Finish::warps}>(n);
  run_backward<T, Plan{kTile, kDivide, 256, 2, 1, plain, Finish::blocks}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 2, 4, plain, Finish::blocks}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 2, 4, plain, Finish::early}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 2, 4}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 2, 4, stream}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 4, 3}>(n);
  run_backward<T, Plan{kTile, kLean, 256, 1, 6}>(n);
  run_backward<T, Plan{kTile, kLean, 512, 2, 2}>(n);
}

template <class T>
void several(int64_t n) {
  constexpr Cache plain = Cache::plain;
  run_backward<T, Plan{kChunk, kDivide, 256, 2}, kLevels>(n, true);
  run_backward<T, Plan{kTile, kLean, 256, 1, 4}, kLevels>(n);
  run_backward<T, Plan{kTile, kLean, 256, 1, 4, plain, Finish::last, true}, kLevels>(n);
  run_backward<T, Plan{kTile, kLean, 256, 2, 2, plain, Finish::last, true}, kLevels>(n);
  run_penalty<T, Plan{kChunk, kDivide}>(n, true);
  run_penalty<T, Plan{kTile, kDivide, 256, 4, 4}>(n);
  run_penalty<T, Plan{kTile, kLean, 256, 4, 4}>(n);
}

template <class T>
void tables(int64_t n) {
  set_up<T>(n, false);
  forwards<T>(n);
  backwards<T>(n);
  if (n < 64 * kMi) several<T>(n);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d SMs, L2 %d MB\n", device.name, device.multiProcessorCount, device.l2CacheSize >> 20);
  const float numbers[] = {0.1234f, 0.0f, 1.7f, 0.0f};  // a scale and its offset, a limit
  check(cudaStreamCreate(&lab.stream));
  lab.scale = static_cast<float*>(memory(sizeof numbers));
  check(cudaMemcpy(lab.scale, numbers, sizeof numbers, cudaMemcpyHostToDevice));
  lab.sinks = {static_cast<double*>(memory(8 * kMi)), static_cast<unsigned*>(memory(4)),
               static_cast<float*>(memory(16)), 1e-4};
  check(cudaMemset(lab.sinks.counter, 0, 4));
  lab.differing = static_cast<unsigned long long*>(memory(8));
  lab.first = memory(kKept);
  for (int64_t n : {64 * kMi, 16 * kMi, kMi}) {
    tables<float>(n);
    tables<bfloat16>(n);
  }
  set_up<float>(64 * kMi, true);  // does the division take a slow path for 0?
  run_forward<float, float, Plan{kChunk, kDivide}>(64 * kMi, true);
  run_forward<float, float, Plan{kTile, kLean, 256, 4, 4}>(64 * kMi);
  return failed;
}
