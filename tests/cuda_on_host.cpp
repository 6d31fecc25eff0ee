// The CUDA loops of csrc/cuda/engine/elementwise.cuh on the host, one lane a warp: for tests/test_cuda_on_host.py.
#include <torch/headeronly/util/BFloat16.h>

#include "cuda/engine/batch.cuh"
#include "cuda/engine/elementwise.cuh"

namespace {

using namespace mbq;
using namespace mbq::cuda;

template <class T>
struct Arguments {
  T* x;
  T** others;  // outs or grads
  T* grad_x;
  float *scale, *shift, *unit, *floor, *lo, *hi;
  double *scale_sums, *shift_sums;
  int64_t outer, channels, inner;
  int levels, lanes;
  bool aligned;
};

// Double rounding is from 8 bits, half up.
template <class Quantizer>
Quantizer quantizer_of(float lo, float hi) {
  if constexpr (std::is_same_v<Quantizer, DoubleRound<float>>) {
    const float ratio = -128 / lo;
    return {{lo, hi}, {lo * ratio, hi * ratio}, {ratio, 1 / ratio, static_cast<float>(nudge(true))}};
  } else {
    return {{lo, hi}};
  }
}

template <template <class> class Quantizer, class T>
Job<Quantizer, T, T> job_of(const Arguments<T>& a) {
  Job<Quantizer, T, T> job{Walk(a.outer, a.channels, a.inner), a.aligned, a.levels};
  job.x = a.x, job.grad_x = a.grad_x, job.scale_sums = a.scale_sums, job.shift_sums = a.shift_sums;
  for (int k = 0; k < a.levels; ++k) {
    job.quantizer[k] = quantizer_of<Quantizer<float>>(a.lo[k], a.hi[k]);
    job.scale[k] = a.scale + k * a.channels;
    job.shift[k] = a.shift + k * a.channels;
    job.unit[k] = a.unit ? a.unit + k * a.channels : nullptr;
    job.floor[k] = a.floor ? a.floor + k * a.channels : nullptr;
    job.other[k] = a.others[k];
  }
  return job;
}

template <template <class> class Quantizer, class T>
void forward(const Arguments<T>& a) {
  const auto job = job_of<Quantizer, T>(a);
  for (int64_t task = 0; task < job.walk.tasks; ++task) {
    Forward<Quantizer, T, T> visit{job, job.walk.channel_of(task)};
    if (!job.walk.by_run)
      walk_column(job.walk, task, visit);
    else
      for (int lane = 0; lane < a.lanes; ++lane) walk_run<kPack<T>, 4>(job.walk, task, lane, a.lanes, a.aligned, visit);
  }
}

template <template <class> class Quantizer, class T>
void backward(const Arguments<T>& a) {
  const auto job = job_of<Quantizer, T>(a);
  for (int64_t task = 0; task < job.walk.tasks; ++task) {
    Backward<Quantizer, T, T, kMaxLevels> visit(job, job.walk.channel_of(task));
    if (!job.walk.by_run)
      walk_column(job.walk, task, visit);
    else
      for (int lane = 0; lane < a.lanes; ++lane) walk_run<kPack<T>, 2>(job.walk, task, lane, a.lanes, a.aligned, visit);
    visit.finish(task, true, [](double value) { return value; });
  }
}

}  // namespace

#define MBQ_HOST(name, T)                                                                        \
  extern "C" void forward_##name(Arguments<T>* a) { forward<FakeQuantize, T>(*a); }              \
  extern "C" void forward_affine_##name(Arguments<T>* a) { forward<FakeQuantizeAffine, T>(*a); } \
  extern "C" void forward_double_##name(Arguments<T>* a) { forward<DoubleRound, T>(*a); }        \
  extern "C" void backward_double_##name(Arguments<T>* a) { backward<DoubleRound, T>(*a); }      \
  extern "C" void backward_##name(Arguments<T>* a) { backward<FakeQuantize, T>(*a); }            \
  extern "C" void backward_affine_##name(Arguments<T>* a) { backward<FakeQuantizeAffine, T>(*a); }
MBQ_HOST(float32, float)
MBQ_HOST(bfloat16, c10::BFloat16)

extern "C" int64_t tasks(int64_t outer, int64_t channels, int64_t inner) { return Walk(outer, channels, inner).tasks; }

extern "C" double channel_sum(const double* partial, int64_t outer, int64_t channels, int64_t inner, int64_t channel) {
  const Walk walk(outer, channels, inner);
  double sum = 0;
  for (int64_t e = 0; e < walk.sums_of_channel(); ++e) sum += partial[walk.sum_index(channel, e)];
  return sum;
}

// The item of every block, for items of `blocks` blocks each; capacity is 3.
extern "C" void items_of_blocks(const int64_t* blocks, int count, int* items) {
  Batch<int, 3> batch;
  for (int i = 0; i < count; ++i) batch.add(i, blocks[i]);
  for (unsigned block = 0; block < batch.first_block[batch.count]; ++block) items[block] = batch.item_of(block);
}

extern "C" bool takes(int64_t first, int64_t second, int64_t third, int64_t fourth) {
  Batch<int, 3> batch;
  for (int64_t blocks : {first, second, third}) {
    if (!batch.takes(blocks)) return false;
    batch.add(0, blocks);
  }
  return batch.takes(fourth);
}
