// Plain traffic: copying for snapshots, reading for benchmarks.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "pool.h"

#if OMNI_X86
#include <emmintrin.h>
#endif

namespace omni {
namespace {

constexpr int64_t kChunk = 256 * 1024;  // bytes: about 10 us
// From here on a copy would push everything else out of the caches: write around them.
constexpr int64_t kStreamed = 4 * 1024 * 1024;

void stream(char* to, const char* from, int64_t bytes) {
#if OMNI_X86
  constexpr int64_t kLine = 64;
  if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0) {
    for (; bytes >= kLine; bytes -= kLine, to += kLine, from += kLine) {
      __m128i line[4];
      for (int i = 0; i < 4; ++i)
        line[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
      for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, line[i]);
    }
    _mm_sfence();  // before anybody is told that the chunk is done
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace
}  // namespace omni

extern "C" {

// Copy `bytes` bytes; the two must not overlap.
void omni_copy(char* to, const char* from, int64_t bytes) {
  auto work = [&](int64_t index) {
    const int64_t first = index * omni::kChunk;
    const int64_t size = std::min(omni::kChunk, bytes - first);
    if (bytes >= omni::kStreamed)
      omni::stream(to + first, from + first, size);
    else
      std::memcpy(to + first, from + first, static_cast<size_t>(size));
  };
  omni::parallel_for((bytes + omni::kChunk - 1) / omni::kChunk, work);
}

// Read `words` 8-byte words on all threads and return their combination: what a kernel that does
// nothing but read can reach. For benchmarks and `omni doctor`.
uint64_t omni_read(const uint64_t* memory, int64_t words) {
  constexpr int64_t kWords = omni::kChunk / sizeof(uint64_t);
  std::atomic<uint64_t> all{0};
  auto work = [&](int64_t index) {
    const int64_t end = std::min(words, (index + 1) * kWords);
    uint64_t part[16] = {};
    int64_t i = index * kWords;
    for (; i + 16 <= end; i += 16)
      for (int j = 0; j < 16; ++j) part[j] ^= memory[i + j];
    for (; i < end; ++i) part[0] ^= memory[i];
    for (int j = 1; j < 16; ++j) part[0] ^= part[j];
    all.fetch_xor(part[0], std::memory_order_relaxed);
  };
  omni::parallel_for((words + kWords - 1) / kWords, work);
  return all.load();
}
}
