// SPDX-License-Identifier: MIT
// What the emulator's own files share: the threads of the block that runs, and what each of them
// knows of what others did.
//
//   scheduler.cpp   launches, fibers, barriers, warp operations
//   warp.cpp        what the warp operations compute
//   memory.cpp      shared and global memory: bounds, initialisation, races, cp.async
//   counters.cpp    coalescing and bank conflicts
//   reports.cpp     what was found
//   runtime.cpp     the functions of the CUDA runtime
//   hooks.cpp       the functions that the compiler calls
#ifndef LOWBIT_TESTS_CUDA_MACHINE_H
#define LOWBIT_TESTS_CUDA_MACHINE_H

#include "device.h"
#include "emulator.h"

#include <deque>
#include <map>
#include <memory>
#include <vector>

namespace emu {

// ---- What happened before what ------------------------------------------------------------------

// A thread counts epochs: a new one begins when it meets others. Its act has the number of the
// block, counted from 1 over all launches, the epoch, and the thread.
struct Stamp {
    uint64_t block : 32, epoch : 22, thread : 10;
    bool operator==(const Stamp &) const = default;
};

// A vector clock: of each thread of a block, the last epoch that is known to be over; and the
// clocks of other blocks of this launch, by their number.
struct Clock {
    std::vector<uint32_t> epochs;
    std::map<uint32_t, std::shared_ptr<const Clock>> blocks;
};
using Knowledge = std::shared_ptr<const Clock>; // null: of nothing
Knowledge merged(const Knowledge &a, const Knowledge &b);

// ---- Threads ------------------------------------------------------------------------------------

struct Copy { // of cp.async: the first `bytes` of 16 from memory, the others zero
    void *to;
    const void *from;
    unsigned bytes;
};

struct Logged { // an access, for the counters
    Site site;
    uint64_t address;
    uint32_t size;
    bool shared;
};

struct Thread {
    unsigned index; // in its block
    uint32_t epoch;
    Knowledge known;    // happened before what this thread does now
    Knowledge fenced;   // happened before the last fence: what its next atomic passes on
    Knowledge observed; // what its atomics have met since: known from the next fence on
    enum { ready, waiting, returned } state;
    const char *waits_in;   // the name of an operation
    Site site;              // where it waits
    std::vector<Copy> open; // copies not committed yet
    std::deque<std::vector<Copy>> groups;
    std::vector<Logged> log;
    void *stack_pointer;
    char *stack;
};
constexpr size_t stack_size = 128 << 10; // arguments of a kernel may take a quarter

struct Block {
    uint32_t number;       // counted over all launches
    uint32_t first_number; // of this launch
    uint64_t index;        // in its grid
    std::vector<Thread> threads;
};
extern Block block;
extern Thread *current; // the thread that runs; null outside of kernels

inline Stamp now() {
    return {block.number, current->epoch, current->index};
}
bool happened_before(Stamp stamp); // what current does now

// ---- From one file to the other -----------------------------------------------------------------

void report(Bug bug, Site site, const char *format, ...) __attribute__((format(printf, 3, 4)));
std::string place(Site site); // file:line

[[noreturn]] void stop_launch(cudaError_t error); // called on a fiber

bool on_other_stack(uint64_t address); // of a thread of this block

// Shared memory as it is when a block begins.
void reset_shared_memory(size_t dynamic);

// Counts what the threads of a warp have logged.
void count_accesses(unsigned warp);

extern cudaError_t last_error;
uint64_t random_below(uint64_t n);

} // namespace emu

#endif
