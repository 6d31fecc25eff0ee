// A pool of threads for one call: nothing runs, and nothing has to survive a fork, between calls.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace mbq {

// body(task) for every task in [0, tasks), on up to `threads` threads of which the caller is one; body does not throw.
template <class Body>
void run_tasks(int64_t tasks, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
  };
  std::vector<std::thread> pool;
  try {
    while (static_cast<int64_t>(pool.size()) + 1 < std::min(threads, tasks)) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // no more threads to be had: those there are do the work
  }
  work();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace mbq
