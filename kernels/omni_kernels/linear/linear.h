// The quantised linear's inner loops, one set per instruction set. Layout: see reference.py.
#pragma once

#include <cstdint>

namespace omni {

constexpr int kGroup = 32;                            // inputs that share one scale
constexpr int kPanel = 16;                            // outputs interleaved in one line
constexpr int kStep = 4;                              // inputs of one output in one line
constexpr int kSteps = kGroup / kStep;                // lines of a group
constexpr int kLine = kPanel * kStep;                 // 64 bytes
constexpr int64_t kPanelGroup = kSteps * int64_t{kLine};  // 512 bytes
constexpr int kZero = 128;                            // stored byte = weight + 128

struct Weight {
  const uint8_t* data;     // [panels, groups, kSteps, kPanel, kStep]
  const uint16_t* scales;  // [panels, groups, kPanel] fp16
  int64_t groups;
  int64_t panels;
};

// Memory that is wanted soon: `lines` cache lines from `memory` on for each group of the tile.
struct Ahead {
  const uint8_t* memory;
  int lines;
};

struct Span {
  int64_t first, last;  // groups
  int64_t size() const { return last - first; }
};

// One instruction set's way to do it. A block is up to `max_rows` rows of x, quantised and laid out
// as the tile wants to read them: one record per group holding every row's 32 values, then the
// correction -128 sum(q) of each row (stored weights carry +128), then its scale.
struct LinearPath {
  int max_rows;
  int64_t (*record_bytes)(int rows);
  // Quantise x[rows, columns] (row stride `columns`) into `block`.
  void (*quantize)(const float* x, int64_t columns, int64_t groups, int rows, uint8_t* block);
  // Add groups [span.first, span.last) to sums[panel, row, kPanel], for one or two panels from
  // `panel` on. Groups are added in ascending order with the same operations whatever `rows`,
  // `panels` and the spans: a row's result never depends on its neighbours.
  void (*tile)(const Weight& weight, int64_t panel, int panels, Span span, const uint8_t* block,
               int rows, Ahead ahead, float* sums);
};

extern const LinearPath kScalarLinear;
#if defined(__x86_64__)
extern const LinearPath kAvx2Linear;
extern const LinearPath kAvx512Linear;
#endif

// Quantise 32 values (the last group may have fewer): q = round-half-even(x * (127 / max|x|)).
// A group with a value that is not finite gets a NaN scale, so the row's result shows it.
struct GroupScale {
  float scale;
  int32_t sum;
};
GroupScale quantize_group_scalar(const float* x, int count, int8_t* q);

// Below this a group counts as zero: 127 / max|x| must stay finite.
constexpr float kTiny = 1e-30f;

}  // namespace omni
