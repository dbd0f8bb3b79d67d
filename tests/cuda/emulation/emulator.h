// SPDX-License-Identifier: MIT
// Runs CUDA kernels on the CPU and watches them. The kernels' .cu files are compiled by g++ with
// this folder first on the include path and -fsanitize=thread, which makes the compiler announce
// every load and store; the emulator takes ThreadSanitizer's place. Launchers run unchanged: the
// emulator has the functions of the CUDA runtime that they call.
//
// Every CUDA thread is a fiber, and runs until it waits for others: for its warp in a shuffle, for
// its block in __syncthreads. Blocks run one after the other, all on the thread that launches.
// Results are right or wrong as on a GPU, up to the order in which threads run, which a test
// chooses; what a GPU would do wrong only now and then, the detectors report every time.
//
// Not modelled: time, registers, caches, launches that overlap (a launch returns when it is done),
// waiting for a thread by reading memory in a loop (it never ends).
#ifndef LOWBIT_TESTS_CUDA_EMULATOR_H
#define LOWBIT_TESTS_CUDA_EMULATOR_H

#include <cstdint>
#include <string>
#include <vector>

namespace emu {

// ---- What can be found --------------------------------------------------------------------------

enum class Bug {
    // Two threads touch the same byte, at least one writes, and no barrier orders them.
    shared_race,
    // The same in global memory. Between blocks of a launch, what orders is a fence after the write
    // and an atomic, then an atomic on the same address and a fence before the read.
    global_race,
    // Touches what a cp.async has not brought yet: the thread has not waited for it.
    copy_in_flight,
    uninitialized_shared,
    uninitialized_global,
    shared_out_of_bounds,
    // Also every other address that is no device memory. Stops the launch.
    global_out_of_bounds,
    // A local variable of another thread.
    foreign_local,
    misaligned,
    // Threads of a block meet in different __syncthreads, or some have returned.
    barrier_divergence,
    // A warp operation whose mask leaves out its caller or a lane that it reads from, or names
    // lanes that have returned.
    warp_mask,
    // Lanes of one warp operation come from different lines.
    warp_divergence,
    // Everyone waits. Stops the launch.
    deadlock,
    // What C++ leaves undefined: indices past an array, signed overflow, shifts too far, division
    // by 0.
    undefined_behavior,
};
const char *name(Bug bug);

struct Report {
    Bug bug;
    std::string what;         // the thread and what it did
    const void *site;         // the instruction after it
    std::string text() const; // all of it, with file and line
};

// What was found since the last reset, at most one of a kind at each place in the code.
const std::vector<Report> &reports();

// ---- How kernels run ----------------------------------------------------------------------------

enum class Order { forward, reverse, shuffled };

struct Settings {
    Order order = Order::forward; // of blocks, of threads, and of those that wake up
    uint64_t seed = 1;            // of the shuffled order
    bool count = false;           // keep the counters below: several times slower
    int multiprocessors = 1;      // what cudaDeviceGetAttribute says
    uint64_t first_block = 0;     // only these blocks of a launch run
    uint64_t last_block = UINT64_MAX;
};
extern Settings settings;

// Forgets reports, counters and the last error. Memory stays.
void reset();

// ---- Counters -----------------------------------------------------------------------------------

enum class Space { global, shared };

// The accesses of one instruction in one kernel: what the memory must do for them, and the least
// that any arrangement of the same bytes would need. Global: sectors of 32 bytes per warp and
// access. Shared: passes over the 32 banks of 4 bytes.
struct Traffic {
    Space space;
    const void *site;
    uint64_t accesses = 0; // by warps
    uint64_t units = 0;
    uint64_t minimum = 0;
    double ratio() const { return minimum ? (double)units / (double)minimum : 1; }
    std::string text() const;
};
std::vector<Traffic> traffic(); // of every instruction
Traffic total(Space space);     // site is null
Traffic worst(Space space);     // the instruction with the largest ratio

} // namespace emu

#endif
