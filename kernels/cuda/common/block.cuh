// SPDX-License-Identifier: MIT
// What the threads of a block do together.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_BLOCK_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_BLOCK_CUH

#include <lb_cuda.cuh>

// The largest of the threads' values, none of them NaN. of_warp is scratch. Contains a barrier, and
// another one has to stand between two calls with the same scratch.
__device__ __forceinline__ float lb_block_max(float value, int32_t *of_warp) {
    // Floats in the order of integers, and back.
    const auto ordered = [](int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
    const unsigned lane = threadIdx.x % LB_WARP, warps = blockDim.x / LB_WARP;
    const int32_t most = __reduce_max_sync(LB_ALL_LANES, ordered(__float_as_int(value)));
    if (lane == 0)
        of_warp[threadIdx.x / LB_WARP] = most;
    __syncthreads();
    return __int_as_float(ordered(__reduce_max_sync(LB_ALL_LANES, of_warp[min(lane, warps - 1)])));
}

#endif
