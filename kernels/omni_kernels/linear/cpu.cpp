// The quantised linear: out[M, N] = x[M, K] @ W[N, K]^T + bias. Loaded with ctypes.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "../isa.h"
#include "../pool.h"
#include "linear.h"

namespace omni {
namespace {

// A chunk of work is at most this much weight: 10 us at memory bandwidth, so that no thread waits
// long for another's last chunk, and at least one tile.
constexpr int64_t kChunkBytes = 256 * 1024;
constexpr int64_t kChunksPerThread = 8;
// Activations worth quantising on several threads.
constexpr int64_t kParallelQuantize = 64 * 1024;
constexpr int kTilePanels = 2;
constexpr int kMostRows = 8;

const LinearPath& path() {
#if OMNI_X86
  if (isa() == kAvx512Vnni) return kAvx512Linear;
  if (isa() == kAvx2) return kAvx2Linear;
#endif
  return kScalarLinear;
}

// Scratch of one calling thread, grown and kept; helpers read it while the caller waits.
class Scratch {
 public:
  uint8_t* get(size_t bytes) {
    if (bytes > size_) {
      size_ = (bytes + bytes / 2 + 63) / 64 * 64;
      memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size_)));
      if (!memory_) size_ = 0;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t size_ = 0;
};

thread_local Scratch scratch;

}  // namespace

int linear(const float* x, int64_t rows, int64_t columns, const Weight& weight, int64_t outputs,
           const float* bias, float* out) {
  const LinearPath& use = path();
  // Rows are cut into blocks of nearly equal height.
  const int64_t blocks = (rows + use.max_rows - 1) / use.max_rows;
  const auto first_row = [&](int64_t block) { return rows * block / blocks; };
  const int64_t row_bytes = use.record_bytes(1) * weight.groups;
  uint8_t* quantized = scratch.get(static_cast<size_t>(rows * row_bytes));
  if (!quantized) return -1;

  auto quantize = [&](int64_t block) {
    const int64_t row = first_row(block);
    use.quantize(x + row * columns, columns, weight.groups,
                 static_cast<int>(first_row(block + 1) - row), quantized + row * row_bytes);
  };
  if (blocks > 1 && rows * columns >= kParallelQuantize)
    parallel_for(blocks, quantize);
  else
    for (int64_t block = 0; block < blocks; ++block) quantize(block);

  const int64_t panel_bytes = weight.groups * kPanelGroup;
  int64_t chunk = std::min(kChunkBytes / panel_bytes,
                           weight.panels / (kChunksPerThread * num_threads()));
  chunk = (std::max<int64_t>(chunk, 1) + kTilePanels - 1) / kTilePanels * kTilePanels;
  auto work = [&](int64_t index) {
    alignas(64) float sums[kTilePanels * kMostRows * kPanel];
    const int64_t end = std::min(weight.panels, (index + 1) * chunk);
    for (int64_t panel = index * chunk; panel < end; panel += kTilePanels) {
      const int panels = static_cast<int>(std::min<int64_t>(kTilePanels, end - panel));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = first_row(block);
        const int height = static_cast<int>(first_row(block + 1) - row);
        // With many rows a tile computes for longer than it reads: each block fetches its part of
        // the next tile, so that reading and computing overlap.
        Ahead ahead = {nullptr, 0};
        if (blocks > 1 && panel + kTilePanels < end) {
          const int64_t lines = (kTilePanels * kSteps + blocks - 1) / blocks;
          ahead = {weight.data + (panel + kTilePanels) * panel_bytes +
                       block * lines * kLine * weight.groups,
                   block * lines < kTilePanels * kSteps ? lines : 0};
        }
        use.tile(weight, panel, panels, quantized + row * row_bytes, height, ahead, sums);
        for (int p = 0; p < panels; ++p) {
          const int64_t n0 = (panel + p) * kPanel;
          const int64_t width = std::min<int64_t>(kPanel, outputs - n0);
          for (int m = 0; m < height; ++m) {
            const float* from = sums + (p * height + m) * kPanel;
            float* to = out + (row + m) * outputs + n0;
            if (bias)
              for (int64_t n = 0; n < width; ++n) to[n] = from[n] + bias[n0 + n];
            else
              for (int64_t n = 0; n < width; ++n) to[n] = from[n];
          }
        }
      }
    }
  };
  parallel_for((weight.panels + chunk - 1) / chunk, work);
  return 0;
}

}  // namespace omni

// x [rows, columns], bias [outputs] or null, out [rows, outputs]: fp32, row-major, contiguous.
// data and scales as in linear.h. Returns 0, or -1 when memory ran out.
extern "C" int omni_linear(const float* x, int64_t rows, int64_t columns, const uint8_t* data,
                           const uint16_t* scales, int64_t outputs, const float* bias,
                           float* out) {
  if (rows <= 0 || outputs <= 0) return 0;
  const omni::Weight weight = {data, scales, (columns + omni::kGroup - 1) / omni::kGroup,
                               (outputs + omni::kPanel - 1) / omni::kPanel};
  return omni::linear(x, rows, columns, weight, outputs, bias, out);
}
