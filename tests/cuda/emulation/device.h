// SPDX-License-Identifier: MIT
// What lb_cuda.cuh and ptx.cuh of this folder are made of: the emulator as the kernels see it.
#ifndef LOWBIT_TESTS_CUDA_DEVICE_H
#define LOWBIT_TESTS_CUDA_DEVICE_H

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace emu {

// A place in a kernel: the return address of the call there. Null is the caller of the function
// that takes it, which is the kernel where the wrapper in between is inlined.
using Site = const void *;

// ---- Launches -----------------------------------------------------------------------------------

// Calls body(argument) once for every thread of the grid.
cudaError_t launch(dim3 grid, dim3 block, size_t shared, void (*body)(void *), void *argument);

// ---- Memory -------------------------------------------------------------------------------------

enum class Kind : uint8_t { read, write, atomic };

// Looks at an access before it happens.
void access(const volatile void *address, size_t size, Kind kind, Site site = nullptr);

// Shared memory of this block: a variable is known by its key, and aligned to 16.
void *shared_variable(const void *key, size_t size);
void *dynamic_shared();

void fence(); // __threadfence

void cp_async(void *to, const void *from, unsigned bytes);
void cp_async_commit();
void cp_async_wait(unsigned groups);

// ---- Threads together ---------------------------------------------------------------------------

// __syncthreads. How many threads voted for it.
unsigned block_barrier(bool vote, int line);

// An operation that the lanes in mask execute together: each brings an argument, and the last one
// to come executes for all. line is the source line.
struct Operation {
    const char *name;
    void (*execute)(void *const *lanes, uint32_t mask);
    bool orders_memory;
};
void collective(const Operation &operation, uint32_t mask, void *argument, int line,
                Site site = nullptr);

extern const Operation syncwarp, shuffle, ballot, ldmatrix, ldmatrix_trans, mma_s8, mma_f16,
    mma_bf16;

struct Shuffle {
    uint64_t value;
    enum { index, up, down, lane_xor } mode;
    int lane, width;
    uint64_t result;
};
struct Ballot {
    bool vote;
    uint32_t result;
};
struct Ldmatrix {
    uint16_t row[8];
    uint32_t *result;
};
struct Mma {
    void *d;
    const uint32_t *a, *b;
};

} // namespace emu

#endif
