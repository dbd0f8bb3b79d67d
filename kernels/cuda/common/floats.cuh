// SPDX-License-Identifier: MIT
// The float types that kernels read and write, as kernels/cpu/common/floats.h has them for the CPU:
// the same bits.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH

#include <lb_cuda.cuh>
#include <ptx.cuh>

#include "../../cpu/common/floats.h"

// load: exact. store: rounds half to even; a NaN becomes the positive quiet NaN.
template <lowbit_float type> struct Float;

template <> struct Float<f32> {
    using Bits = uint32_t;
    static __device__ __forceinline__ float load(Bits bits) { return __uint_as_float(bits); }
    static __device__ __forceinline__ Bits store(float v) {
        return v != v ? 0x7fc00000 : __float_as_uint(v);
    }
};

template <> struct Float<f16> {
    using Bits = uint16_t;
    static __device__ __forceinline__ float load(Bits bits) {
        return __half2float(__ushort_as_half(bits));
    }
    static __device__ __forceinline__ Bits store(float v) {
        return v != v ? 0x7e00 : __half_as_ushort(__float2half_rn(v));
    }
};

template <> struct Float<bf16> {
    using Bits = uint16_t;
    static __device__ __forceinline__ float load(Bits bits) {
        return __uint_as_float((uint32_t)bits << 16);
    }
    static __device__ __forceinline__ Bits store(float v) {
        const uint32_t bits = __float_as_uint(v);
        return v != v ? 0x7fc0 : (Bits)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

// How many elements 16 bytes hold.
template <lowbit_float type> constexpr int lb_vector = 16 / sizeof(typename Float<type>::Bits);

// n elements of 16 bytes in all, or one.
template <lowbit_float type, int n>
__device__ __forceinline__ void lb_load(float (&values)[n],
                                        const typename Float<type>::Bits *from) {
    using Bits = typename Float<type>::Bits;
    if constexpr (n == 1) {
        values[0] = Float<type>::load(*from);
    } else {
        static_assert(n * sizeof(Bits) == 16, "16 bytes or one element");
        union {
            uint4 vector;
            Bits bits[n];
        } v;
        v.vector = ptx::ldg_nc_v4(from);
        for (int i = 0; i < n; i++)
            values[i] = Float<type>::load(v.bits[i]);
    }
}
template <lowbit_float type, int n>
__device__ __forceinline__ void lb_store(typename Float<type>::Bits *to, const float (&values)[n]) {
    using Bits = typename Float<type>::Bits;
    if constexpr (n == 1) {
        *to = Float<type>::store(values[0]);
    } else {
        static_assert(n * sizeof(Bits) == 16, "16 bytes or one element");
        union {
            uint4 vector;
            Bits bits[n];
        } v;
        for (int i = 0; i < n; i++)
            v.bits[i] = Float<type>::store(values[i]);
        *reinterpret_cast<uint4 *>(to) = v.vector;
    }
}

// n bytes together, 8, 4 or 1.
template <int n> struct Bytes {
    union {
        typename std::conditional<
            n == 8, uint2, typename std::conditional<n == 4, uint32_t, uint8_t>::type>::type word;
        uint8_t byte[n];
    };
    static_assert(sizeof(word) == n, "8, 4 or 1");
};

#endif
