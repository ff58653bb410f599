// A small pool of helper threads shared by every CPU kernel of this library.
//
// Why not OpenMP: a region must end when a second core is busy with somebody else's work. Here the
// caller takes chunks like any helper and waits only for helpers that hold one, so a helper that
// never gets a core costs nothing. Several threads may call at once, each with its own loop.
#pragma once

#include <cstdint>

namespace omni {

using Body = void (*)(void* context, int64_t index);

// Call body(context, i) once for each i in [0, count), in any order, on the caller and the helpers.
// Returns when all are done. May be called from several threads at once; never from inside a body.
// Without `wake` only helpers that are awake join: for work that is over before a sleeper is up.
void run_parallel(int64_t count, Body body, void* context, bool wake);

template <class F>
void parallel_for(int64_t count, F& f, bool wake = true) {
  run_parallel(
      count, [](void* context, int64_t index) { (*static_cast<F*>(context))(index); }, &f, wake);
}

// Threads that may work on one call, the caller included; at least 1.
void set_num_threads(int count);
int num_threads();

}  // namespace omni
