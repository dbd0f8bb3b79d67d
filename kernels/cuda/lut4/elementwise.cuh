// SPDX-License-Identifier: MIT
// To 4-bit codes and back.
#ifndef LOWBIT_KERNELS_CUDA_LUT4_ELEMENTWISE_CUH
#define LOWBIT_KERNELS_CUDA_LUT4_ELEMENTWISE_CUH

#include "weight.cuh"

namespace {

// A thread turns eight codes into numbers.
template <lowbit_float type>
__global__ void __launch_bounds__(LUT4_THREADS)
    dequantize_kernel(lowbit_cuda_lut4_weight w, lb_bits<type> *y) {
    LB_SHARED(codebook, float[16]);
    LB_SHARED(nested, float[256]);
    if (threadIdx.x < 16)
        codebook[threadIdx.x] = w.codebook[threadIdx.x];
    float offset = 0.0f;
    if (w.nested_absmax) {
        nested[threadIdx.x] = w.nested_codebook[threadIdx.x];
        offset = w.nested_offset[0];
    }
    __syncthreads();
    const bool w_aligned = lb_aligned(w.packed, 4), y_aligned = lb_aligned(y, 16);
    for (size_t i = 8 * (static_cast<size_t>(blockIdx.x) * LUT4_THREADS + threadIdx.x);
         i < w.elements; i += 8 * static_cast<size_t>(gridDim.x) * LUT4_THREADS) {
        // Eight elements that begin at a multiple of 8 are in one block.
        const float s = scale_of(w, load_scale(w, i >> w.log2_blocksize), nested, offset);
        uint32_t bytes = 0;
        if (w_aligned && i + 8 <= w.elements)
            bytes = *reinterpret_cast<const uint32_t *>(w.packed + i / 2);
        else
            for (size_t j = 0; j < 4 && i + 2 * j < w.elements; j++)
                bytes |= static_cast<uint32_t>(w.packed[i / 2 + j]) << (8 * j);
        float values[8];
        for (int j = 0; j < 8; j++)
            values[j] = __fmul_rn(codebook[bytes >> (j / 2 * 8 + (j % 2 ? 0 : 4)) & 15], s);
        lb_store8<type>(y, i, w.elements, y_aligned, values);
    }
}

// The midpoints between neighbours of the sorted codebook, and the codes of the sorted values: of equal
// ones the smallest.
struct Levels {
    float midpoint[15];
    uint8_t code[16];

    // By a whole block of threads; sorted is scratch. Contains barriers, the last one at the end.
    __device__ __forceinline__ void fill(const float *codebook, float (&sorted)[16]) {
        if (threadIdx.x < 16) {
            const float value = codebook[threadIdx.x];
            int rank = 0, first = threadIdx.x;
            for (int c = 15; c >= 0; c--) {
                const float other = codebook[c];
                rank += other < value || (other == value && c < static_cast<int>(threadIdx.x));
                first = other == value ? c : first;
            }
            sorted[rank] = value;
            code[rank] = static_cast<uint8_t>(first);
        }
        __syncthreads();
        if (threadIdx.x < 15)
            midpoint[threadIdx.x] = __fadd_rn(__fmul_rn(0.5f, sorted[threadIdx.x]),
                                              __fmul_rn(0.5f, sorted[threadIdx.x + 1]));
        __syncthreads();
    }
    __device__ __forceinline__ uint32_t nearest(float v) const {
        int rank = 0;
        for (int step = 8; step; step /= 2)
            if (v > midpoint[rank + step - 1])
                rank += step;
        return code[rank] & 15;
    }
};

// A warp takes a block of elements after the other, eight in a lane at a time.
template <lowbit_float type>
__global__ void __launch_bounds__(LUT4_THREADS)
    quantize_kernel(const lb_bits<type> *x, const float *codebook, size_t elements,
                    unsigned log2_blocksize, uint8_t *packed, float *absmax) {
    LB_SHARED(levels, Levels);
    LB_SHARED(sorted, float[16]);
    levels.fill(codebook, sorted);
    const int lane = threadIdx.x % 32;
    const size_t warps = static_cast<size_t>(gridDim.x) * LUT4_WARPS,
                 blocksize = static_cast<size_t>(1) << log2_blocksize,
                 blocks = (elements + blocksize - 1) >> log2_blocksize;
    for (size_t block = static_cast<size_t>(blockIdx.x) * LUT4_WARPS + threadIdx.x / 32;
         block < blocks; block += warps) {
        const size_t begin = block * blocksize;
        const size_t end = elements - begin < blocksize ? elements : begin + blocksize;
        float most = 0.0f;
        for (size_t i = begin + lane; i < end; i += 32) {
            const float magnitude = fabsf(Float<type>::load(x[i]));
            if (magnitude < INFINITY)
                most = fmaxf(most, magnitude);
        }
        for (int step = 16; step; step /= 2)
            most = fmaxf(most, __shfl_xor_sync(LB_ALL_LANES, most, step));
        if (lane == 0)
            absmax[block] = most;
        const float inv = most >= 0x1p-126f ? __fdiv_rn(1.0f, most) : 0.0f;
        for (size_t i = begin + 2 * lane; i < end; i += 64) {
            uint32_t byte = 0;
            for (size_t j = i; j < i + 2; j++) {
                const float value = j < end ? Float<type>::load(x[j]) : 0.0f;
                const float v = fabsf(value) < INFINITY ? __fmul_rn(value, inv) : 0.0f;
                byte = byte << 4 | levels.nearest(v);
            }
            packed[i / 2] = static_cast<uint8_t>(byte);
        }
    }
}

} // namespace

#endif
