// Gated DeltaNet: spreads the key heads of all sequences over threads.
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "../isa.h"
#include "../pool.h"
#include "gated_delta.h"

namespace omni {
namespace {

// Below this many multiply-adds one thread is done before another has woken up.
constexpr int64_t kParallelWork = 100 * 1000;

// The widest path whose vectors divide both head widths; null when none does.
const DeltaPath* path(int64_t key_dim, int64_t value_dim) {
  const auto fits = [=](const DeltaPath& use) {
    return key_dim % use.width == 0 && value_dim % use.width == 0;
  };
#if OMNI_X86
  if (isa() == kAvx512Vnni && fits(kDelta512)) return &kDelta512;
  if (isa() >= kAvx2 && fits(kDelta256)) return &kDelta256;
#endif
  return fits(kDelta128) ? &kDelta128 : nullptr;
}

// Helpers live as long as the process, so the scratch is made once per thread.
DeltaBuffers& buffers() {
  static thread_local std::unique_ptr<DeltaBuffers> mine;
  if (!mine) mine.reset(new DeltaBuffers);
  return *mine;
}

}  // namespace
}  // namespace omni

// x rows x_stride apart; recurrent and conv: one slot's part every so many floats; journal rows
// likewise inside a slot, or null; slots, journal_starts [sequences] (-1: store none), cu_seqlens
// [sequences + 1]; out [N, HV V], or null when only the state is wanted. Returns 0, or -1 having
// done nothing when this library cannot do the shape.
extern "C" int omni_gated_delta(const omni::DeltaLayer* layer, const float* x, int64_t x_stride,
                                float* recurrent, int64_t recurrent_stride, float* conv,
                                int64_t conv_stride, float* journal, int64_t journal_slot_stride,
                                int64_t journal_stride, const int64_t* slots,
                                const int64_t* journal_starts, const int64_t* cu_seqlens,
                                int64_t sequences, float* out) {
  using namespace omni;
  const DeltaPath* use = path(layer->key_dim, layer->value_dim);
  if (!use || layer->key_dim > kMaxDeltaDim || layer->value_dim > kMaxDeltaDim ||
      layer->num_taps < 1 || layer->num_taps > kMaxTaps)
    return -1;

  const int64_t width = layer->value_heads * layer->value_dim;
  std::vector<DeltaRun> runs;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t first = cu_seqlens[b], tokens = cu_seqlens[b + 1] - first;
    if (tokens == 0) continue;
    DeltaRun run = {x + first * x_stride,
                    x_stride,
                    tokens,
                    recurrent + slots[b] * recurrent_stride,
                    conv + slots[b] * conv_stride,
                    nullptr,
                    journal_stride,
                    out ? out + first * width : nullptr};
    if (journal && journal_starts[b] >= 0)
      run.journal = journal + slots[b] * journal_slot_stride + journal_starts[b] * journal_stride;
    runs.push_back(run);
  }
  // Longest first, so that no thread begins a long run when the others are done.
  std::stable_sort(runs.begin(), runs.end(),
                   [](const auto& a, const auto& b) { return a.tokens > b.tokens; });

  const int64_t heads = layer->key_heads;
  const int64_t count = static_cast<int64_t>(runs.size()) * heads;
  auto compute = [&](int64_t i) { use->head(*layer, runs[i / heads], i % heads, buffers()); };
  if (cu_seqlens[sequences] * width * layer->key_dim < kParallelWork)
    for (int64_t i = 0; i < count; ++i) compute(i);
  else
    parallel_for(count, compute);
  return 0;
}
