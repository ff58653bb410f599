// The quantised linear: out[M, N] = x[M, K] @ W[N, K]^T + bias. Loaded with ctypes.
//
// Work is cut three ways: panels of 16 outputs over threads, blocks of a few rows of x that a tile
// keeps in registers, and, when several blocks read the same weights, spans of groups short enough
// that two panels of a span stay in the first-level cache. None of the cuts changes a result.
#include <algorithm>
#include <cstdlib>
#include <cstring>
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
// Weight traffic, counted again for every 8 rows, below which no helper is woken: about 15 us.
constexpr int64_t kBriefBytes = 384 * 1024;
// Activations worth quantising on several threads.
constexpr int64_t kParallelQuantize = 32 * 1024;
constexpr int kTilePanels = 2;
constexpr int64_t kSpanGroups = 16;   // 17 KiB of weights and scales of two panels, spread
// Blocks that bring weights of 4 and 5 bits to bytes in registers, each for itself; more of them
// share what is brought to bytes once.
constexpr int64_t kFewBlocks = 4;
constexpr int64_t kPassRows = 256;    // rows whose sums one thread holds, 32 KiB

const LinearPath& path() {
#if OMNI_X86
  if (isa() == kAvx512Vnni) return kAvx512Linear;
  if (isa() == kAvx2) return kAvx2Linear;
#elif OMNI_ARM
  if (isa() == kNeon) return kNeonLinear;
#endif
  return kScalarLinear;
}

// Memory of one calling thread, grown and kept; helpers read it while the caller waits.
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

inline void fetch_for_writing(const void* memory) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(memory, 1);
#endif
}

// `size` things cut into `parts` of nearly equal length.
struct Cut {
  int64_t parts, length, longer;
  Cut(int64_t size, int64_t most)
      : parts((size + most - 1) / most), length(size / parts), longer(size % parts) {}
  int64_t first(int64_t part) const { return part * length + std::min(part, longer); }
  int64_t size(int64_t part) const { return length + (part < longer); }
};

struct Product {
  const LinearPath& path;
  const Weight weight;
  const float* x;
  const float* bias;
  float* out;
  const int64_t rows, columns, outputs;
  const Cut blocks{rows, path.max_rows};
  // One block reads its weights once and needs no spans.
  const Cut spans{weight.groups, blocks.parts == 1 ? weight.groups : kSpanGroups};
  const int64_t row_bytes = path.record_bytes(weight.format, 1) * weight.groups;
  const bool spread = weight.format.bits < 8 && blocks.parts > kFewBlocks;
  uint8_t* quantized = nullptr;

  int height(int64_t block) const { return static_cast<int>(blocks.size(block)); }
  uint8_t* quantized_block(int64_t block) const {
    return quantized + blocks.first(block) * row_bytes;
  }
  const uint8_t* quantized_group(int64_t block, int64_t index) const {
    return quantized_block(block) + index * path.record_bytes(weight.format, height(block));
  }
  Span span(int64_t index) const { return {spans.first(index), spans.first(index + 1)}; }
  const uint8_t* group(int64_t panel, int64_t index) const {
    return weight.data + (panel * weight.groups + index) * weight.format.group_bytes();
  }

  void quantize(int64_t block) const {
    path.quantize(x + blocks.first(block) * columns, columns, weight.groups, height(block),
                  weight.format, quantized_block(block));
  }

  // The tile of `panels` from `panel` on, of the groups in `span`; `lines` holds it if it is spread.
  Tile tile(int64_t panel, int panels, Span span, uint8_t* lines) const {
    const Format format = weight.format;
    const int64_t panel_scales = weight.groups * format.group_scales();
    const uint16_t* scales =
        weight.scales + panel * panel_scales + span.first * format.group_scales();
    if (!spread)
      return {group(panel, span.first), weight.groups * format.group_bytes(), scales, panel_scales,
              span.size(), panels, format, false};
    const int64_t panel_bytes = span.size() * kSpread;
    for (int p = 0; p < panels; ++p)
      path.spread(group(panel + p, span.first), format.bits, span.size(), lines + p * panel_bytes);
    return {lines, panel_bytes, scales, panel_scales, span.size(), panels, format, true};
  }

  // What the `block`-th block of a pass fetches while it computes span `index` of the tile at
  // `panel`: its share of the next span, `lines` per group, so that reading overlaps computing.
  Ahead ahead(int64_t panel, int64_t end, int64_t index, int64_t block, int lines) const {
    if (++index == spans.parts) {
      index = 0;
      panel += kTilePanels;
    }
    const int64_t line = block * lines;
    panel += line / weight.format.bits;
    if (blocks.parts == 1 || line >= kTilePanels * weight.format.bits || panel >= end)
      return {nullptr, 0, block == 0 && !spread};
    const Span next = span(index);
    return {group(panel, next.first) + line % weight.format.bits * next.size() * kLine, lines,
            block == 0 && !spread};
  }

  // Lines per group that each of `sharers` blocks fetches: together two panels', in equal parts
  // that do not cross from one panel to the next.
  int shared_lines(int64_t sharers) const {
    const int all = kTilePanels * weight.format.bits;
    int lines = all;
    while (lines > 1) {
      const int fewer = lines % 2 ? 1 : lines / 2;
      if (fewer * sharers < all) break;
      lines = fewer;
    }
    return lines;
  }

  // Compute panels [panel, end) for all rows.
  void compute(int64_t panel, int64_t end) const {
    alignas(64) float sums[kTilePanels * kPanel * kPassRows];
    alignas(64) uint8_t spread_lines[kTilePanels * kSpanGroups * kSpread];
    for (; panel < end; panel += kTilePanels) {
      const int panels = static_cast<int>(std::min<int64_t>(kTilePanels, end - panel));
      for (int64_t first = 0, last; first < blocks.parts; first = last) {
        last = std::min(blocks.parts, first + kPassRows / path.max_rows);
        const int lines = shared_lines(last - first);
        const int64_t base = blocks.first(first);
        for (int64_t index = 0; index < spans.parts; ++index) {
          const bool opens = index == 0, closes = index + 1 == spans.parts;
          const Tile part = tile(panel, panels, span(index), spread_lines);
          for (int64_t block = first; block < last; ++block) {
            float* own = sums + (blocks.first(block) - base) * panels * kPanel;
            if (opens) std::memset(own, 0, sizeof(float) * panels * kPanel * height(block));
            if (closes) fetch_out(panel, panels, block);
            path.tile(part, quantized_group(block, span(index).first), height(block),
                      ahead(panel, end, index, block - first, lines), own);
            if (closes) write(panel, panels, block, own);
          }
        }
      }
    }
  }

  // Own the lines that `write` will fill: each row's are on another page, and a core that waits for
  // them one after the other loses a tenth of its time.
  void fetch_out(int64_t panel, int panels, int64_t block) const {
    const float* to = out + blocks.first(block) * outputs + panel * kPanel;
    for (int m = 0; m < height(block); ++m, to += outputs)
      for (int p = 0; p < panels; ++p) fetch_for_writing(to + p * kPanel);
  }

  // Add the bias and write what lies within the matrix; sums [panels, height, kPanel].
  void write(int64_t panel, int panels, int64_t block, const float* sums) const {
    for (int p = 0; p < panels; ++p) {
      const int64_t n0 = (panel + p) * kPanel;
      const int64_t width = std::min<int64_t>(kPanel, outputs - n0);
      float* to = out + blocks.first(block) * outputs + n0;
      for (int m = 0; m < height(block); ++m, sums += kPanel, to += outputs) {
        if (width == kPanel)
          std::memcpy(to, sums, sizeof(float) * kPanel);
        else
          std::memcpy(to, sums, sizeof(float) * width);
        if (bias)
          for (int64_t n = 0; n < width; ++n) to[n] += bias[n0 + n];
      }
    }
  }

  bool run() {
    quantized = scratch.get(static_cast<size_t>(rows * row_bytes));
    if (!quantized) return false;
    auto quantize_block = [this](int64_t block) { quantize(block); };
    if (blocks.parts > 1 && rows * columns >= kParallelQuantize)
      parallel_for(blocks.parts, quantize_block);
    else
      for (int64_t block = 0; block < blocks.parts; ++block) quantize(block);

    int64_t chunk = std::min(kChunkBytes / (weight.groups * weight.format.group_bytes()),
                             weight.panels / (kChunksPerThread * num_threads()));
    chunk = (std::max<int64_t>(chunk, 1) + kTilePanels - 1) / kTilePanels * kTilePanels;
    auto compute_chunk = [this, chunk](int64_t index) {
      compute(index * chunk, std::min(weight.panels, (index + 1) * chunk));
    };
    const int64_t traffic =
        weight.panels * weight.groups * weight.format.group_bytes() * (1 + rows / 8);
    parallel_for((weight.panels + chunk - 1) / chunk, compute_chunk, traffic >= kBriefBytes);
    return true;
  }
};

}  // namespace
}  // namespace omni

// x [rows, columns], bias [outputs] or null, out [rows, outputs]: fp32, row-major, contiguous.
// data and scales of 4, 5 or 8 bits, with or without offsets, as in linear.h. Returns 0, or -1 when memory ran out.
extern "C" int omni_linear(const float* x, int64_t rows, int64_t columns, const uint8_t* data,
                           const uint16_t* scales, int bits, int offsets, int64_t outputs,
                           const float* bias, float* out) {
  using namespace omni;
  if (rows <= 0 || columns <= 0 || outputs <= 0) return 0;
  const Weight weight = {data, scales, (columns + kGroup - 1) / kGroup,
                         (outputs + kPanel - 1) / kPanel, {bits, offsets != 0}};
  Product product = {path(), weight, x, bias, out, rows, columns, outputs};
  return product.run() ? 0 : -1;
}
