// Tensors in, tensors out, for round_clamp and the ops on its least significant bits: two launches forward where
// something is counted, one backward. Integer sums: exact in any order.
#pragma once

#include "arguments/lsb.h"
#include "driver.cuh"
#include "lsb_visit.cuh"

namespace mbq::cuda {

template <LsbOut out, bool counts, class T, class Result, int capacity>
__global__ void round_clamp_kernel(const __grid_constant__ Batch<RoundClampJob<T, Result>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const RoundClampJob<T, Result>& job = batch.items[item];
  const int64_t thread = thread_index(batch, item), task = job.walk.by_run ? thread / kWarpLanes : thread;
  if (task >= job.walk.tasks) return;  // whole warps by run, so that the sum below is full
  RoundClampVisit<out, counts, T, Result> visit(job, job.walk.channel_of(task));
  if (job.walk.by_run) {
    const int lane = threadIdx.x % kWarpLanes;
    walk_run<kPack<Result>, 4>(job.walk, task, lane, kWarpLanes, job.aligned, visit);
    if (!counts) return;
    const unsigned sum = __reduce_add_sync(kFullWarp, visit.found);
    if (lane == 0) job.counts[task] = sum;
  } else {
    walk_column(job.walk, task, visit);
    if (counts) job.counts[task] = visit.found;
  }
}

template <bool task, class T, int capacity>
__global__ void lsb_gradient_kernel(const __grid_constant__ Batch<LsbGradientJob<T>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const LsbGradientJob<T>& job = batch.items[item];
  const int64_t thread = thread_index(batch, item), part = job.walk.by_run ? thread / kWarpLanes : thread;
  if (part >= job.walk.tasks) return;
  LsbGradientVisit<task, T> visit(job, job.walk.channel_of(part));
  if (job.walk.by_run) {
    walk_run<kPack<T>, 2>(job.walk, part, threadIdx.x % kWarpLanes, kWarpLanes, job.aligned, visit);
  } else {
    walk_column(job.walk, part, visit);
  }
}

// penalty and rate of one x from the counts of its tasks; one block for each.
struct CountSum {
  const unsigned* counts;
  int64_t tasks;
  double numel;
  float *penalty, *rate;
};

template <int threads, int capacity>
__global__ void count_sum_kernel(const __grid_constant__ Batch<CountSum, capacity> batch) {
  __shared__ double warps[2][threads / kWarpLanes];
  const CountSum& sum = batch.items[batch.item_of(blockIdx.x)];
  double penalty = 0.0, nonzero = 0.0;  // integers below 2^53, which double adds exactly
  for (int64_t task = threadIdx.x; task < sum.tasks; task += threads) {
    penalty += sum.counts[task] >> 16;
    nonzero += sum.counts[task] & 0xffff;
  }
  penalty = warp_sum(penalty);
  nonzero = warp_sum(nonzero);
  if (threadIdx.x % kWarpLanes == 0) {
    warps[0][threadIdx.x / kWarpLanes] = penalty;
    warps[1][threadIdx.x / kWarpLanes] = nonzero;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < threads / kWarpLanes; ++w) {
    penalty += warps[0][w];
    nonzero += warps[1][w];
  }
  *sum.penalty = static_cast<float>(penalty);
  *sum.rate = static_cast<float>(nonzero / sum.numel);
}

inline Walk walk_of(const Weight& weight) {
  return Walk(weight.layout.outer, weight.layout.channels, weight.layout.inner);
}

// A number for every task of every x.
inline Tensor allocate_task_counts(const std::vector<Weight>& each) {
  int64_t tasks = 0;
  for (const Weight& weight : each) tasks += walk_of(weight).tasks;
  return torch::stable::new_empty(each[0].x, {tasks}, ScalarType::Int);
}

template <bool many>
void sum_counts(const Launch& launch, const std::vector<Weight>& each, const Tensor& task_counts,
                const std::vector<Tensor>& counts) {
  const unsigned* next = static_cast<const unsigned*>(task_counts.const_data_ptr());
  std::vector<CountSum> sums;
  for (size_t t = 0; t < each.size(); ++t) {
    const int64_t tasks = walk_of(each[t]).tasks, numel = std::max<int64_t>(1, each[t].layout.numel());
    sums.push_back({next, tasks, static_cast<double>(numel), static_cast<float*>(counts[0].mutable_data_ptr()) + t,
                    static_cast<float*>(counts[1].mutable_data_ptr()) + t});
    next += tasks;
  }
  constexpr int capacity = many ? kBatch<CountSum> : 1;
  launch_all(launch, count_sum_kernel<kThreads, capacity>, sums, [](const CountSum&) { return int64_t{1}; });
}

// Values or residuals of every x, and with `counts` their penalties and rates; many: those are lists.
template <LsbOut out, bool counts, bool many = false>
Lsbs lsb_forward(const std::vector<Weight>& each) {
  const Launch launch(each[0].op, each[0].x);
  Lsbs lsbs;
  std::optional<Tensor> task_counts;
  if (counts) {
    lsbs.counts = allocate_counts(each, many);
    task_counts = allocate_task_counts(each);
  }
  dispatch_pair<true>(launch.op, each[0].x.scalar_type(), each[0].x.scalar_type(), [&](auto storage, auto) {
    using T = decltype(storage);
    using Result = std::conditional_t<out == LsbOut::residual, int8_t, T>;
    using Work = RoundClampJob<T, Result>;
    std::vector<Work> jobs;
    unsigned* next = counts ? static_cast<unsigned*>(task_counts->mutable_data_ptr()) : nullptr;
    for (const Weight& weight : each) {
      Work job{walk_of(weight),
               on_16_bytes(weight.x),
               weight.quantizer<float>(),
               weight.limits<float>(),
               static_cast<const T*>(weight.x.const_data_ptr()),
               nullptr,
               next};
      if (out != LsbOut::nothing) {
        const auto dtype = out == LsbOut::residual ? ScalarType::Char : weight.x.scalar_type();
        const Tensor& to = lsbs.outs.emplace_back(allocate_like(weight.x, dtype));
        job.to = static_cast<Result*>(to.mutable_data_ptr());
        job.aligned = job.aligned && on_16_bytes(to);
      }
      if (counts) next += job.walk.tasks;
      jobs.push_back(job);
    }
    constexpr int capacity = many ? kBatch<Work> : 1;
    launch_all(launch, round_clamp_kernel<out, counts, T, Result, capacity>, jobs,
               [](const Work& job) { return blocks_of(job.walk); });
  });
  if constexpr (counts) sum_counts<many>(launch, each, *task_counts, lsbs.counts);
  return lsbs;
}

// Gradients of every x: of its penalty, and with `task` of its value too, of which `grads` are the upstream ones.
template <bool task, bool many = false>
std::vector<Tensor> lsb_backward(const std::vector<Weight>& each, const std::vector<Tensor>& grads,
                                 const Tensor& grad_penalties, bool unit_gradient) {
  const Launch launch(each[0].op, each[0].x);
  const std::vector<Tensor> upstream = aligned_each(each, grads);
  const Tensor penalties = checked_penalties(each, grad_penalties);
  check(!task || upstream.size() == each.size(), launch.op, ": needs a gradient per tensor");
  std::vector<Tensor> grad_xs;
  dispatch_pair<true>(launch.op, each[0].x.scalar_type(), each[0].x.scalar_type(), [&](auto storage, auto) {
    using T = decltype(storage);
    using Work = LsbGradientJob<T>;
    std::vector<Work> jobs;
    for (size_t t = 0; t < each.size(); ++t) {
      const Tensor& x = each[t].x;
      const Tensor& grad_x = grad_xs.emplace_back(allocate_like(x));
      jobs.push_back({walk_of(each[t]), on_16_bytes(x) && on_16_bytes(grad_x), each[t].quantizer<float>(unit_gradient),
                      each[t].limits<float>(), static_cast<const float*>(penalties.const_data_ptr()) + t,
                      static_cast<const T*>(x.const_data_ptr()),
                      task ? static_cast<const T*>(upstream[t].const_data_ptr()) : nullptr,
                      static_cast<T*>(grad_x.mutable_data_ptr())});
      if (task) jobs.back().aligned = jobs.back().aligned && on_16_bytes(upstream[t]);
    }
    constexpr int capacity = many ? kBatch<Work> : 1;
    launch_all(launch, lsb_gradient_kernel<task, T, capacity>, jobs,
               [](const Work& job) { return blocks_of(job.walk); });
  });
  return grad_xs;
}

}  // namespace mbq::cuda
