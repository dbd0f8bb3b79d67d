// SPDX-License-Identifier: MIT
// How many blocks to launch where each takes piece after piece.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_GRID_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_GRID_CUH

#include <lb_cuda.cuh>

// One for each piece, but no more than run at the same time on the current device.
inline cudaError_t lb_grid(size_t pieces, unsigned blocks_per_multiprocessor, unsigned *blocks) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const size_t most = (size_t)multiprocessors * blocks_per_multiprocessor;
    *blocks = (unsigned)(pieces < most ? pieces : most);
    return error;
}

#endif
