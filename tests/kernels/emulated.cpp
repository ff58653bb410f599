// Calls the kernels for a parent that cannot load them, because they are of another instruction set:
// reads calls from standard input, writes what they returned and what became of their buffers to
// standard output, until there is no more. Driven by emulated.py.
//
// call:   name length (int64), name, number of arguments (int64), arguments
// argument: 'i' int64 | 'f' float | 'n' (a null pointer) | 'b' number of bytes (int64), bytes
// answer: result (int64), then the bytes of every buffer
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

extern "C" {
struct Layer {
  int64_t key_heads, value_heads, key_dim, value_dim, num_taps;
  const float *taps, *rate, *dt_bias, *norm;
  float eps;
};
int omni_version();
int omni_best_isa();
int omni_runs_isa(int wanted);
int omni_set_isa(int wanted);
void omni_set_num_threads(int count);
void omni_copy(void* to, const void* from, int64_t bytes);
int omni_linear(const float* x, int64_t rows, int64_t columns, const uint8_t* data,
                const uint16_t* scales, int bits, int offsets, int64_t outputs, const float* bias,
                float* out);
void omni_rms_norm(const float* x, const float* weight, int64_t rows, int64_t columns, float eps,
                   float* out);
void omni_layer_norm(const float* x, const float* weight, const float* bias, int64_t rows,
                     int64_t columns, float eps, float* out);
void omni_silu_mul(const float* gate_up, int64_t rows, int64_t columns, float* out);
void omni_sigmoid_mul(float* x, const float* gate, int64_t rows, int64_t columns, int64_t stride);
int omni_norm_rotate_and_store(float* qkv, int64_t rows, int64_t stride, int64_t heads,
                               int64_t kv_heads, int64_t dim, int64_t half, const float* q_norm,
                               const float* k_norm, float eps, const float* cosine,
                               const float* sine, const int64_t* slots, int64_t tokens, float* k,
                               float* v);
int omni_paged_attention(const float* q, int64_t q_stride, const float* k, const float* v,
                         float* out, const int64_t* cu_seqlens, const int64_t* num_computed,
                         const int64_t* pages, const int64_t* page_offsets, int64_t sequences,
                         int64_t page_tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                         float scale);
int omni_gated_delta(const Layer* layer, const float* x, int64_t x_stride, float* recurrent,
                     int64_t recurrent_stride, float* conv, int64_t conv_stride, float* journal,
                     int64_t journal_slot_stride, int64_t journal_stride, const int64_t* slots,
                     const int64_t* journal_starts, const int64_t* cu_seqlens, int64_t sequences,
                     float* out);
}

namespace {

void read_exactly(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(3);
}

int64_t read_whole() {
  int64_t value;
  read_exactly(&value, sizeof(value));
  return value;
}

// Memory that ends where a page begins that nobody may touch: a kernel that reads or writes beyond
// its arguments dies.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t usable = (bytes + page - 1) / page * page;
    mapped_ = usable + page;
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::exit(4);
    base_ = static_cast<char*>(memory);
    if (mprotect(base_ + usable, page, PROT_NONE) != 0) std::exit(4);
    data_ = base_ + usable - bytes;
  }
  ~Buffer() { munmap(base_, mapped_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_, mapped_;
  char *base_, *data_;
};

struct Argument {
  int64_t whole = 0;
  float real = 0;
  std::unique_ptr<Buffer> buffer;
};

Argument read_argument() {
  Argument argument;
  char tag;
  read_exactly(&tag, 1);
  if (tag == 'i') argument.whole = read_whole();
  if (tag == 'f') read_exactly(&argument.real, sizeof(float));
  if (tag == 'b') {
    argument.buffer.reset(new Buffer(static_cast<size_t>(read_whole())));
    read_exactly(argument.buffer->data(), argument.buffer->bytes());
  }
  return argument;
}

template <class T>
T as(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(argument.buffer ? argument.buffer->data() : nullptr);
  else if constexpr (std::is_floating_point_v<T>)
    return argument.real;
  else
    return static_cast<T>(argument.whole);
}

template <class R, class... A, size_t... I>
int64_t spread(R (*function)(A...), const std::vector<Argument>& given, std::index_sequence<I...>) {
  if (given.size() != sizeof...(A)) std::exit(5);
  if constexpr (std::is_void_v<R>) {
    function(as<A>(given[I])...);
    return 0;
  } else {
    return function(as<A>(given[I])...);
  }
}

template <class R, class... A>
int64_t call(R (*function)(A...), const std::vector<Argument>& given) {
  return spread(function, given, std::index_sequence_for<A...>());
}

// The layer in pieces, because a struct of pointers cannot be sent.
int gated_delta(int64_t key_heads, int64_t value_heads, int64_t key_dim, int64_t value_dim,
                int64_t num_taps, const float* taps, const float* rate, const float* dt_bias,
                const float* norm, float eps, const float* x, int64_t x_stride, float* recurrent,
                int64_t recurrent_stride, float* conv, int64_t conv_stride, float* journal,
                int64_t journal_slot_stride, int64_t journal_stride, const int64_t* slots,
                const int64_t* journal_starts, const int64_t* cu_seqlens, int64_t sequences,
                float* out) {
  const Layer layer = {key_heads, value_heads, key_dim, value_dim, num_taps,
                       taps,      rate,        dt_bias, norm,      eps};
  return omni_gated_delta(&layer, x, x_stride, recurrent, recurrent_stride, conv, conv_stride,
                          journal, journal_slot_stride, journal_stride, slots, journal_starts,
                          cu_seqlens, sequences, out);
}

int64_t dispatch(const std::string& name, const std::vector<Argument>& given) {
#define CALL(function) \
  if (name == #function) return call(function, given)
  CALL(omni_version);
  CALL(omni_best_isa);
  CALL(omni_runs_isa);
  CALL(omni_set_isa);
  CALL(omni_set_num_threads);
  CALL(omni_copy);
  CALL(omni_linear);
  CALL(omni_rms_norm);
  CALL(omni_layer_norm);
  CALL(omni_silu_mul);
  CALL(omni_sigmoid_mul);
  CALL(omni_norm_rotate_and_store);
  CALL(omni_paged_attention);
  CALL(gated_delta);
#undef CALL
  std::exit(6);
}

}  // namespace

int main() {
  int64_t length;
  while (std::fread(&length, sizeof(length), 1, stdin) == 1) {
    std::string name(static_cast<size_t>(length), ' ');
    read_exactly(name.data(), name.size());
    std::vector<Argument> given(static_cast<size_t>(read_whole()));
    for (Argument& argument : given) argument = read_argument();
    const int64_t result = dispatch(name, given);
    std::fwrite(&result, sizeof(result), 1, stdout);
    for (const Argument& argument : given)
      if (argument.buffer) std::fwrite(argument.buffer->data(), 1, argument.buffer->bytes(), stdout);
    std::fflush(stdout);
  }
  return 0;
}
