// SPDX-License-Identifier: MIT

#include "planted_bugs.h"

#include <lb_cuda.cuh>
#include <ptx.cuh>

namespace {

enum { THREADS = 128, TILE = 4 * THREADS, WARPS = THREADS / LB_WARP };

__device__ int32_t warp_sum(int32_t sum) {
    for (unsigned lanes = LB_WARP / 2; lanes; lanes /= 2)
        sum += __shfl_xor_sync(LB_ALL_LANES, sum, lanes);
    return sum;
}

volatile int32_t host_variable;

// Each block copies 512 numbers, adds them up, and writes their sum; the last block to come adds
// the sums.
template <Plant plant>
__global__ void __launch_bounds__(THREADS)
    sum_kernel(const int32_t *x, size_t n, int32_t *partial, uint32_t *arrived, int32_t *total) {
    LB_SHARED(tile, int32_t[TILE]);
    LB_SHARED(sums, int32_t[WARPS]);
    LB_SHARED(last, bool);
    LB_SHARED(local, int32_t *);
    const unsigned t = threadIdx.x, lane = t % LB_WARP, warp = t / LB_WARP;
    if (plant == Plant::returns_before_barrier && t >= 100)
        return;
    if (plant == Plant::mask_names_returned && t == 127)
        return;

    const size_t first = (size_t)blockIdx.x * TILE + 4 * t;
    int bytes = first >= n ? 0 : n - first < 4 ? 4 * (int)(n - first) : 16;
    if (plant == Plant::reads_past_end)
        bytes = 16;
    const int32_t *from = bytes ? x + first : x;
    if (plant == Plant::misaligned_copy && t == 1)
        from--;
    if (plant != Plant::no_zero_fill || bytes)
        ptx::cp_async16(tile + 4 * t, from, bytes);
    ptx::cp_async_commit();
    if (plant != Plant::no_wait_for_copy)
        ptx::cp_async_wait<0>();
    if (plant == Plant::syncwarp_of_one_lane && lane == 0)
        __syncwarp();
    if (plant == Plant::two_barriers && warp == 0)
        __syncthreads();
    else if (plant == Plant::syncwarp_after_copy)
        __syncwarp();
    else if (plant != Plant::no_barrier_after_copy)
        __syncthreads();

    int32_t sum = 0;
    for (unsigned i = t; i < TILE; i += THREADS)
        sum += tile[plant == Plant::index_past_array && i == 511 ? i + 1 : i];
    if (plant == Plant::misaligned_load && t == 0)
        *reinterpret_cast<int2 *>(&sums[0]) = *reinterpret_cast<const int2 *>(x + 1);
    if (plant == Plant::shift_too_far)
        sum += 0 << (32 + t);
    if (plant == Plant::sum_overflows)
        sum += 0x7fffffff;
    if (plant == Plant::half_warp_shuffles && lane < 16)
        sum += 0 * __shfl_xor_sync(LB_ALL_LANES, sum, 1);
    if (plant == Plant::mask_without_caller)
        sum += 0 * __shfl_xor_sync(0xffff, sum, 1);
    if (plant == Plant::mask_without_source && lane < 16)
        sum += 0 * __shfl_xor_sync(0xffff, sum, 16);
    sum = warp_sum(sum);
    if (lane == 0 && (plant != Plant::sum_left_out || warp != 2))
        sums[warp] = sum;
    if (plant == Plant::past_shared_variable && t == 0) {
        int32_t *past = sums + WARPS;
        *past = sum;
    }
    if (plant != Plant::no_barrier_after_sums)
        __syncthreads();
    if (plant == Plant::writes_what_others_read && t == 32)
        sums[1] = 0;
    if (plant == Plant::writes_local_of_other) {
        if (t == 0)
            local = &sum;
        __syncthreads();
        if (t == 1)
            *local = 0;
    }
    if (plant == Plant::writes_host_memory && t == 0)
        host_variable = sum;
    if (plant == Plant::threads_write_one_place)
        *total = (int32_t)t;

    if (t == 0) {
        int32_t block_sum = 0;
        for (int i = 0; i < WARPS; i++)
            block_sum += sums[i];
        if (plant == Plant::fence_before_write)
            __threadfence();
        partial[blockIdx.x + (plant == Plant::writes_past_end)] = block_sum;
        if (plant != Plant::no_fence_before_atomic && plant != Plant::fence_before_write)
            __threadfence();
        if (plant == Plant::counter_without_atomic)
            last = (*arrived)++ == gridDim.x - 1;
        else
            last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || warp != 0)
        return;
    if (plant != Plant::no_fence_after_atomic)
        __threadfence();
    sum = 0;
    for (unsigned i = lane; i < gridDim.x; i += LB_WARP)
        sum += partial[i];
    sum = warp_sum(sum);
    if (lane == 0) {
        if (plant == Plant::adds_to_total)
            *total += sum;
        else
            *total = sum;
        *arrived = 0;
    }
}

__global__ void gather_global_kernel(int stride, const int32_t *x, int32_t *y) {
    y[threadIdx.x] = x[stride * threadIdx.x];
}

__global__ void gather_shared_kernel(int stride, const int32_t *x, int32_t *y) {
    LB_DYNAMIC_SHARED(copy, int32_t[1024]);
    for (unsigned i = threadIdx.x; i < 1024; i += LB_WARP)
        copy[i] = x[i];
    __syncwarp();
    y[threadIdx.x] = copy[stride * threadIdx.x];
}

__global__ void nothing_kernel() {}

} // namespace

cudaError_t sum(Plant plant, const int32_t *x, size_t n, int32_t *partial, uint32_t *arrived,
                int32_t *total) {
    const dim3 blocks((unsigned)((n + TILE - 1) / TILE));
    switch (plant) {
#define CASE(name, bug)                                                                            \
    case Plant::name:                                                                              \
        return lb_launch(sum_kernel<Plant::name>, blocks, THREADS, 0, nullptr, x, n, partial,      \
                         arrived, total);
        CASE(nothing, )
        PLANTED_BUGS(CASE)
    }
    return cudaErrorInvalidValue;
}

cudaError_t gather_global(int stride, const int32_t *x, int32_t *y) {
    return lb_launch(gather_global_kernel, 1, LB_WARP, 0, nullptr, stride, x, y);
}

cudaError_t gather_shared(int stride, const int32_t *x, int32_t *y) {
    return lb_launch(gather_shared_kernel, 1, LB_WARP, 1024 * sizeof(int32_t), nullptr, stride, x,
                     y);
}

cudaError_t nothing(dim3 grid, dim3 block, size_t shared) {
    return lb_launch(nothing_kernel, grid, block, shared, nullptr);
}
