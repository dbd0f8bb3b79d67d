// SPDX-License-Identifier: MIT
// How many blocks of threads to launch.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_GRID_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_GRID_CUH

#include <lb_cuda.cuh>

// How many pieces of a size hold n elements.
inline unsigned lb_pieces(size_t n, size_t size) {
    return static_cast<unsigned>((n + size - 1) / size);
}

// Where each block takes piece after piece: enough of them for a GPU of so many multiprocessors.
constexpr size_t LB_MULTIPROCESSORS = 132, LB_MOST_BLOCKS = 16 * LB_MULTIPROCESSORS; // an H200
inline unsigned lb_blocks(size_t pieces) {
    return static_cast<unsigned>(pieces < LB_MOST_BLOCKS ? pieces : LB_MOST_BLOCKS);
}

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
