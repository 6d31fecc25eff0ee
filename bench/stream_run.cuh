// How stream_lab.cu compares, times and prints a variant.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "stream_sums.cuh"

using bfloat16 = __nv_bfloat16;
constexpr int kLaunches = 24, kReplays = 10;
constexpr int64_t kMi = 1 << 20, kKept = 64 * kMi * 4, kInTurn = 400 * kMi;
bool failed = false;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("stream_lab: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
void* memory(int64_t bytes) {
  void* at;
  check(cudaMalloc(&at, bytes));
  return at;
}

struct Buffers {
  void *x, *grad, *y;
};
struct Lab {
  std::vector<Buffers> ring;
  cudaStream_t stream;
  float* scale;         // a scale and an offset
  Sinks sinks;          // of all kernels
  void* first;          // y of the first variant
  float first_sums[2];  // and its sums
  unsigned long long* differing;
  double copy_rate;  // GB/s
  char work[64];
} lab;

__global__ void fill(float* f, bfloat16* h, int64_t n, unsigned seed, float scale, bool relu) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = ((z >> 40) + 0.5f) / 16777216.0f, turn = (z & 0xffffff) / 16777216.0f;
    float v = sqrtf(-2.0f * logf(u)) * cospif(2.0f * turn) * scale;
    if (i % 4099 == 0) v = (static_cast<int>(z % 19) - 9) * 0.5f * 0.1234f;  // ties of the scale 0.1234
    if (i % 65537 == 1) v = z % 2 ? INFINITY : -INFINITY;  // no NaN: the gradient of the scale would say nothing
    if (relu && v < 0) v = 0.0f;
    if (f) f[i] = v;
    if (h) h[i] = __float2bfloat16(v);
  }
}
template <class R>
__global__ void count_differing(const R* a, const R* b, int64_t n, unsigned long long* count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const float u = static_cast<float>(a[i]), v = static_cast<float>(b[i]);
    if (u != v && !(u != u && v != v)) atomicAdd(count, 1ull);
  }
}

// Microseconds of call(k), k a buffer's place in the ring
template <class Call>
float time_of(Call call, size_t places) {
  cudaEvent_t begin, end;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaEventCreate(&begin)), check(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) call(i % places);
  check(cudaStreamBeginCapture(lab.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLaunches; ++i) call(i % places);
  check(cudaStreamEndCapture(lab.stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<float> times;
  for (int r = 0; r < kReplays; ++r) {
    float ms;
    check(cudaEventRecord(begin, lab.stream)), check(cudaGraphLaunch(executable, lab.stream));
    check(cudaEventRecord(end, lab.stream)), check(cudaStreamSynchronize(lab.stream));
    check(cudaEventElapsedTime(&ms, begin, end));
    if (r) times.push_back(ms * 1e3f / kLaunches);  // the first one warms up
  }
  std::sort(times.begin(), times.end());
  check(cudaGraphExecDestroy(executable)), check(cudaGraphDestroy(graph));
  check(cudaEventDestroy(begin)), check(cudaEventDestroy(end));
  return times[times.size() / 2];
}

template <Plan plan>
void print_plan(char* to, size_t size) {
  static const char *maths[] = {"divide", "reciprocal", "lean"}, *orders[] = {"chunk", "tile"};
  static const char* finishes[] = {", sums of warps", ", sums of blocks", ", PDL", ", last block"};
  std::snprintf(to, size, "%s %dx%d, %s%s%s%s", orders[static_cast<int>(plan.order)], plan.threads, plan.accesses,
                maths[static_cast<int>(plan.math)], plan.cache == Cache::stream ? ", stream" : "",
                plan.loads_first ? ", loads first" : "", finishes[static_cast<int>(plan.finish)]);
}

// Whether `sums` gradients or counts agree with the first variant's, and y's n values do
template <class R>
unsigned long long differing(int64_t n, int sums, bool is_first) {
  float found[2] = {};
  unsigned long long count = 0;
  check(cudaMemcpy(found, lab.sinks.grad_scale, sums * sizeof(float), cudaMemcpyDeviceToHost));
  if (is_first) {
    check(cudaMemcpy(lab.first, lab.ring[0].y, n * sizeof(R), cudaMemcpyDeviceToDevice));
    std::copy(found, found + 2, lab.first_sums);
  }
  check(cudaMemset(lab.differing, 0, sizeof count));
  if (n) count_differing<<<1024, 256>>>(static_cast<R*>(lab.ring[0].y), static_cast<R*>(lab.first), n, lab.differing);
  check(cudaGetLastError());
  check(cudaMemcpy(&count, lab.differing, sizeof count, cudaMemcpyDeviceToHost));
  for (int k = 0; k < sums; ++k)
    count += std::fabs(found[k] - lab.first_sums[k]) > 1e-4f * std::fabs(lab.first_sums[k]);
  return count;
}

struct Grid {
  unsigned blocks;
  int64_t chunk;
};
template <Plan plan>
Grid grid_of(int64_t n, int width) {
  int64_t chunk = 4096;
  while (chunk > 256 && n < 16384 * chunk) chunk /= 2;
  chunk = std::max<int64_t>(chunk, 32 * width * plan.accesses);
  const int64_t elements =
      plan.order == Order::tile ? int64_t{plan.threads} * plan.accesses * width : plan.threads / 32 * chunk;
  return {static_cast<unsigned>((n + elements - 1) / elements), chunk};
}

// launch(place, grid) of a plan's kernel, timed and compared; the bytes are those that must move. results: of type R in
// y; sums: of the kernel.
template <class R, Plan plan, class Launch>
void run(const char* kind, int64_t n, int width, double bytes, int64_t results, int sums, bool is_first, size_t places,
         Launch launch) {
  const Grid grid = grid_of<plan>(n, width);
  check(cudaMemset(lab.ring[0].y, 0xcc, results * sizeof(R)));
  const float us = time_of([&](size_t place) { launch(place, grid); }, places);
  check(cudaGetLastError());
  launch(0, grid);
  check(cudaStreamSynchronize(lab.stream));
  const auto bad = differing<R>(results, sums, is_first);
  char name[96];
  print_plan<plan>(name, sizeof name);
  const double rate = bytes / us / 1e3;
  std::printf("%-18s %-9s %-44s", lab.work, kind, name);
  if (bad) {
    std::printf(" WRONG: %llu results differ\n", bad);
  } else {
    std::printf(" %8.2f us %6.0f GB/s %5.3f of copy\n", us, rate, rate / lab.copy_rate);
  }
  failed |= bad != 0;
  std::fflush(stdout);
}
