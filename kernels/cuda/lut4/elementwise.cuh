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

// The midpoints between neighbours of the sorted codebook, as a tree: those below node i are behind
// node 2 i, and those above it behind 2 i + 1. And the codes of the sorted values: of equal ones
// the smallest.
struct Levels {
    float tree[16]; // from 1 on
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
        if (threadIdx.x < 15) {
            const float middle = __fadd_rn(__fmul_rn(0.5f, sorted[threadIdx.x]),
                                           __fmul_rn(0.5f, sorted[threadIdx.x + 1]));
            const int height = __ffs(static_cast<int>(threadIdx.x) + 1);  // of the node, from 1 on
            tree[(16 + threadIdx.x) >> height] = __fadd_rn(middle, 0.0f); // never -0
        }
        __syncthreads();
    }
};

// What a thread keeps of them.
struct Nearest {
    const float *tree;
    float root;
    uint64_t codes = 0; // from the lowest bits on

    __device__ __forceinline__ explicit Nearest(const Levels &levels)
        : tree(levels.tree), root(levels.tree[1]) {
        for (int rank = 0; rank < 16; rank++)
            codes |= static_cast<uint64_t>(levels.code[rank]) << (4 * rank);
    }
    __device__ __forceinline__ uint32_t operator()(float v) const {
        // Whether v is above is the sign of a difference: no comparison, of which a GPU does half
        // as many at a time.
        uint32_t path = __float_as_uint(__fsub_rn(root, v)) >> 31;
        for (int depth = 1; depth < 4; depth++) {
            const float *nodes = tree + (1 << depth);
            path = path << 1 | __float_as_uint(__fsub_rn(nodes[path], v)) >> 31;
        }
        return static_cast<uint32_t>(codes >> (4 * path)) & 15;
    }
};

// Eight numbers with zeros for those that are not finite; returns the largest magnitude.
template <lowbit_float type>
__device__ __forceinline__ float load_finite(float (&values)[8], const lb_bits<type> *x, size_t i,
                                             size_t n, bool aligned) {
    lb_load8<type>(values, x, i, n, aligned);
    float most = 0.0f, nothing = 0.0f;
    for (float value : values) {
        most = fmaxf(most, fabsf(value));
        nothing = __fmaf_rn(value, 0.0f, nothing); // NaN, if a value is or is infinite
    }
    if (nothing == 0.0f)
        return most;
    most = 0.0f;
    for (float &value : values) {
        value = fabsf(value) < INFINITY ? value : 0.0f;
        most = fmaxf(most, fabsf(value));
    }
    return most;
}

// A warp takes 256 elements after others, eight in a lane, in blocks of 32 to 256; or larger
// blocks, which it reads twice.
template <lowbit_float type>
__global__ void __launch_bounds__(LUT4_THREADS)
    quantize_kernel(const lb_bits<type> *x, const float *codebook, size_t elements,
                    unsigned log2_blocksize, uint8_t *packed, float *absmax) {
    LB_SHARED(levels, Levels);
    LB_SHARED(sorted, float[16]);
    levels.fill(codebook, sorted);
    const Nearest nearest(levels);
    const bool x_aligned = lb_aligned(x, 16), packed_aligned = lb_aligned(packed, 4);
    const unsigned lane = threadIdx.x % 32, lanes = min(32u, 1u << (log2_blocksize - 3));
    const size_t span = max(static_cast<size_t>(256), static_cast<size_t>(1) << log2_blocksize);
    for (size_t begin = (static_cast<size_t>(blockIdx.x) * LUT4_WARPS + threadIdx.x / 32) * span;
         begin < elements; begin += static_cast<size_t>(gridDim.x) * LUT4_WARPS * span) {
        const size_t first = begin + 8 * lane, end = min(begin + span, elements);
        float values[8], most = 0.0f;
        for (size_t i = first; i < end; i += 256)
            most = fmaxf(most, load_finite<type>(values, x, i, elements, x_aligned));
        for (unsigned other = lanes / 2; other; other /= 2)
            most = fmaxf(most, __shfl_xor_sync(LB_ALL_LANES, most, other));
        if (first < end && lane % lanes == 0)
            absmax[first >> log2_blocksize] = most;
        const float inv = most >= 0x1p-126f ? __fdiv_rn(1.0f, most) : 0.0f;
        for (size_t i = first; i < end; i += 256) {
            if (span > 256)
                load_finite<type>(values, x, i, elements, x_aligned);
            uint32_t codes = 0;
            for (int j = 0; j < 8; j++)
                codes |= nearest(__fmul_rn(values[j], inv)) << (j / 2 * 8 + (j % 2 ? 0 : 4));
            if (packed_aligned && i + 8 <= elements)
                *reinterpret_cast<uint32_t *>(packed + i / 2) = codes;
            else
                for (int j = 0; j < 4 && i + 2 * j < elements; j++)
                    packed[i / 2 + j] = static_cast<uint8_t>(codes >> (8 * j));
        }
    }
}

} // namespace

#endif
