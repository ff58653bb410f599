// The quantised linear's inner loops, one set per instruction set. Layout: see layout.py.
#pragma once

#include <cstdint>

namespace omni {

constexpr int kGroup = 32;             // inputs that share one scale
constexpr int kPanel = 16;             // outputs interleaved in one line
constexpr int kStep = 4;               // inputs of one output in one line
constexpr int kSteps = kGroup / kStep; // lines of a group with a weight in each byte
constexpr int kHalf = kSteps / 2;      // lines of a group with a weight in each nibble
constexpr int kLine = kPanel * kStep;  // 64 bytes
constexpr int64_t kSpread = kSteps * int64_t{kLine};  // bytes of a group, a weight in each

// Weights of 8, 5 or 4 bits take as many lines per group of a panel.
constexpr int64_t group_bytes(int bits) { return int64_t{bits} * kLine; }
// What a stored weight exceeds the weight by.
constexpr int zero_of(int bits) { return 1 << (bits - 1); }

struct Format {
  int bits;      // 4, 5 or 8
  bool offsets;  // of 4 or 5 bits: each group has an offset, which comes after its scale

  int64_t group_bytes() const { return omni::group_bytes(bits); }
  int64_t group_scales() const { return offsets ? 2 * kPanel : kPanel; }
};

struct Weight {
  const uint8_t* data;     // [panels, groups, bits, kLine]
  const uint16_t* scales;  // [panels, groups, 1 or 2, kPanel] fp16
  int64_t groups;
  int64_t panels;
  Format format;
};

// A few groups of one or two panels, as a tile reads them.
struct Tile {
  const uint8_t* data;  // the first panel's first group
  int64_t panel_bytes;  // from one panel to the next
  const uint16_t* scales;
  int64_t panel_scales;
  int64_t groups;
  int panels;
  Format format;
  bool spread;  // of 4 or 5 bits, but with a weight in each byte: kSpread bytes per group
};

// Memory that is wanted soon: `lines` cache lines from `memory` on for each group of the tile.
struct Ahead {
  const uint8_t* memory;
  int lines;
  bool near = true;  // nobody before has brought the tile's own weights to the first-level cache
};

struct Span {
  int64_t first, last;  // groups
  int64_t size() const { return last - first; }
};

// One instruction set's way to do it. A block is up to `max_rows` rows of x, quantised and laid out
// as the tile wants to read them: one record per group holding every row's 32 values, then the
// correction -zero sum(q) of each row (stored weights exceed theirs by zero), then its scale. For
// weights with offsets, whose stored numbers are meant as they are, the correction is the fp32
// number scale * sum(q), which the offset is multiplied by.
struct LinearPath {
  int max_rows;
  int64_t (*record_bytes)(Format format, int rows);
  // Quantise x[rows, columns] (row stride `columns`) into `block`, for weights of `format`.
  void (*quantize)(const float* x, int64_t columns, int64_t groups, int rows, Format format,
                   uint8_t* block);
  // Write a weight of 4 or 5 `bits` into each byte of lines[groups, kSpread].
  void (*spread)(const uint8_t* data, int bits, int64_t groups, uint8_t* lines);
  // Add the tile's groups to sums[panel, row, kPanel]; `block` begins at the tile's first group.
  // Groups are added in ascending order with the same operations whatever `rows`, the panels, the
  // cut into tiles and `spread`: a row's result never depends on its neighbours.
  void (*tile)(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums);
};

extern const LinearPath kScalarLinear;
#if defined(__x86_64__)
extern const LinearPath kAvx2Linear;
extern const LinearPath kAvx512Linear;
#elif defined(__aarch64__)
extern const LinearPath kNeonLinear;
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
