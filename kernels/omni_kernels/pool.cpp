#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace omni {
namespace {

using Clock = std::chrono::steady_clock;

// How long a helper looks for the next loop before it sleeps: the gap between two linears of a
// decode step is 5-30 us, and waking a sleeper costs the caller about 5 us.
constexpr auto kHelperSpin = std::chrono::microseconds(50);
// How long a caller waits for the last helper's chunk before it sleeps.
constexpr auto kCallerSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClock = 32;  // reading the clock costs about as much as one pause

// Loops that run at once with helpers; a further caller simply works alone.
constexpr int kSlots = 16;
constexpr int kMaxThreads = 64;

constexpr uint32_t kActive = 1u << 31;   // helpers may join
constexpr uint32_t kWaiting = 1u << 30;  // the caller sleeps until the last helper leaves
constexpr uint32_t kHelpers = kWaiting - 1;

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the time is over; returns done().
template <class F>
bool spin_until(F done, std::chrono::microseconds limit) {
  const auto deadline = Clock::now() + limit;
  while (true) {
    for (int i = 0; i < kPausesPerClock; ++i) {
      if (done()) return true;
      pause_cpu();
    }
    if (Clock::now() >= deadline) return done();
  }
}

struct alignas(64) Slot {
  std::atomic<bool> taken{false};
  std::atomic<uint32_t> state{0};  // kActive | kWaiting | number of helpers inside
  Body body = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  alignas(64) std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
  }
};

struct Pool {
  Slot slots[kSlots];
  alignas(64) std::atomic<uint64_t> epoch{0};  // counts loops ever started
  std::atomic<int> sleepers{0};
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable done;
  std::atomic<int> num_helpers{0};

  void grow(int wanted);
  void help(int id);
  bool try_slot(Slot& slot);
  void run(Slot& slot, int64_t count, Body body, void* context, bool wake);
};

std::atomic<int> thread_limit{0};
// Never destroyed: helpers may still run while the process exits. Replaced in a forked child, whose
// copy has no helpers and perhaps locked mutexes.
std::atomic<Pool*> pool{nullptr};

int default_threads() {
  int cpus = 0;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (pthread_getaffinity_np(pthread_self(), sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
#endif
  if (cpus < 1) cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cpus, 1, 8);  // memory traffic saturates at about 8 threads
}

void forget_pool_in_child() { pool.store(nullptr, std::memory_order_release); }

Pool& get_pool() {
  Pool* found = pool.load(std::memory_order_acquire);
  if (found) return *found;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  (void)registered;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

void Pool::grow(int wanted) {
  if (num_helpers.load(std::memory_order_acquire) >= wanted) return;
  std::lock_guard<std::mutex> lock(mutex);
  while (num_helpers.load(std::memory_order_relaxed) < wanted) {
    const int id = num_helpers.load(std::memory_order_relaxed);
    try {
      std::thread([this, id] { help(id); }).detach();
    } catch (const std::system_error&) {
      return;  // out of threads: the caller works alone
    }
    num_helpers.store(id + 1, std::memory_order_release);
  }
}

// Joins a loop that still has chunks and works on it; returns whether it did.
bool Pool::try_slot(Slot& slot) {
  uint32_t state = slot.state.load(std::memory_order_acquire);
  do {
    if (!(state & kActive)) return false;
  } while (!slot.state.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
  slot.work();
  const uint32_t before = slot.state.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kWaiting) && (before & kHelpers) == 1) {
    std::lock_guard<std::mutex> lock(mutex);
    done.notify_all();
  }
  return true;
}

void Pool::help(int id) {
  sigset_t all;  // signals belong to the threads of the application
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  while (true) {
    const uint64_t seen = epoch.load(std::memory_order_seq_cst);
    if (id + 1 < num_threads()) {
      for (Slot& slot : slots) try_slot(slot);
      if (spin_until([&] { return epoch.load(std::memory_order_acquire) != seen; }, kHelperSpin))
        continue;
    }
    std::unique_lock<std::mutex> lock(mutex);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    work.wait(lock, [&] { return epoch.load(std::memory_order_seq_cst) != seen; });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Pool::run(Slot& slot, int64_t count, Body body, void* context, bool wake) {
  slot.body = body;
  slot.context = context;
  slot.count = count;
  slot.next.store(0, std::memory_order_relaxed);
  slot.state.store(kActive, std::memory_order_release);
  epoch.fetch_add(1, std::memory_order_seq_cst);
  // Either a helper going to sleep sees the new epoch, or it is already counted here.
  if (wake && sleepers.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(mutex); }
    work.notify_all();
  }
  slot.work();
  slot.state.fetch_and(~kActive, std::memory_order_acq_rel);
  const auto empty = [&] { return (slot.state.load(std::memory_order_acquire) & kHelpers) == 0; };
  if (!spin_until(empty, kCallerSpin)) {
    slot.state.fetch_or(kWaiting, std::memory_order_acq_rel);
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, empty);
  }
}

}  // namespace

void set_num_threads(int count) {
  thread_limit.store(std::clamp(count, 1, kMaxThreads), std::memory_order_relaxed);
}

int num_threads() {
  const int limit = thread_limit.load(std::memory_order_relaxed);
  if (limit > 0) return limit;
  set_num_threads(default_threads());
  return thread_limit.load(std::memory_order_relaxed);
}

void run_parallel(int64_t count, Body body, void* context, bool wake) {
  const int helpers = static_cast<int>(std::min<int64_t>(num_threads(), count)) - 1;
  if (helpers > 0) {
    Pool& shared = get_pool();
    shared.grow(helpers);
    for (Slot& slot : shared.slots) {
      if (slot.taken.load(std::memory_order_relaxed)) continue;
      if (slot.taken.exchange(true, std::memory_order_acquire)) continue;
      shared.run(slot, count, body, context, wake);
      slot.taken.store(false, std::memory_order_release);
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) body(context, i);
}

}  // namespace omni
