// SPDX-License-Identifier: MIT
// A kernel that adds numbers up, right or with one mistake, and kernels that read memory in bad
// ways.
#ifndef LOWBIT_TESTS_CUDA_PLANTED_BUGS_H
#define LOWBIT_TESTS_CUDA_PLANTED_BUGS_H

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// What to plant, and the emu::Bug that has to be reported.
#define PLANTED_BUGS(PLANT)                                                                        \
    PLANT(no_wait_for_copy, copy_in_flight)                                                        \
    PLANT(no_barrier_after_copy, shared_race)                                                      \
    PLANT(syncwarp_after_copy, shared_race)                                                        \
    PLANT(no_barrier_after_sums, shared_race)                                                      \
    PLANT(writes_what_others_read, shared_race)                                                    \
    PLANT(no_zero_fill, uninitialized_shared)                                                      \
    PLANT(sum_left_out, uninitialized_shared)                                                      \
    PLANT(past_shared_variable, shared_out_of_bounds)                                              \
    PLANT(no_fence_before_atomic, global_race)                                                     \
    PLANT(fence_before_write, global_race)                                                         \
    PLANT(no_fence_after_atomic, global_race)                                                      \
    PLANT(counter_without_atomic, global_race)                                                     \
    PLANT(threads_write_one_place, global_race)                                                    \
    PLANT(adds_to_total, uninitialized_global)                                                     \
    PLANT(reads_past_end, global_out_of_bounds)                                                    \
    PLANT(writes_past_end, global_out_of_bounds)                                                   \
    PLANT(writes_host_memory, global_out_of_bounds)                                                \
    PLANT(writes_local_of_other, foreign_local)                                                    \
    PLANT(misaligned_copy, misaligned)                                                             \
    PLANT(misaligned_load, misaligned)                                                             \
    PLANT(returns_before_barrier, barrier_divergence)                                              \
    PLANT(two_barriers, barrier_divergence)                                                        \
    PLANT(half_warp_shuffles, warp_divergence)                                                     \
    PLANT(mask_without_caller, warp_mask)                                                          \
    PLANT(mask_without_source, warp_mask)                                                          \
    PLANT(mask_names_returned, warp_mask)                                                          \
    PLANT(syncwarp_of_one_lane, deadlock)                                                          \
    PLANT(index_past_array, undefined_behavior)                                                    \
    PLANT(shift_too_far, undefined_behavior)                                                       \
    PLANT(sum_overflows, undefined_behavior)

enum class Plant {
    nothing,
#define NAME(plant, bug) plant,
    PLANTED_BUGS(NAME)
#undef NAME
};

// *total = the sum of n numbers. partial has room for one number per block of 512 numbers; *arrived
// is 0 and will be again. x is 16-byte aligned.
cudaError_t sum(Plant plant, const int32_t *x, size_t n, int32_t *partial, uint32_t *arrived,
                int32_t *total);

// y[i] = x[stride * i] for i < 32, read from global memory, or from shared memory where all 1,024
// numbers of x are copied first.
cudaError_t gather_global(int stride, const int32_t *x, int32_t *y);
cudaError_t gather_shared(int stride, const int32_t *x, int32_t *y);

// A kernel that does nothing.
cudaError_t nothing(dim3 grid, dim3 block, size_t shared);

#endif
