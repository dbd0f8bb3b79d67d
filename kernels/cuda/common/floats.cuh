// SPDX-License-Identifier: MIT
// The float types that kernels read and write, as kernels/cpu/common/floats.h has them for the CPU:
// the same bits.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH

#include <lb_cuda.cuh>

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

// n neighbours of type T that are read and written together, aligned to their size: 16, 8 or 4
// bytes, or one T. In words, since ptxas keeps an array of bytes or halves in memory.
template <typename T, int n> struct lb_pack {
    static constexpr int size = n * sizeof(T), words = size < 4 ? 1 : size / 4;
    static constexpr int per_word = n / words, bits = 8 * sizeof(T);
    static_assert(size == 16 || size == 8 || size == 4 || n == 1, "a vector or one element");
    uint32_t word[words] = {};

    __device__ __forceinline__ T get(int i) const {
        return (T)(word[i / per_word] >> i % per_word * bits);
    }
    __device__ __forceinline__ void set(int i, T value) { // once for each i
        word[i / per_word] |= (uint32_t)value << i % per_word * bits;
    }
};

template <typename T, int n> __device__ __forceinline__ lb_pack<T, n> lb_read(const T *from) {
    lb_pack<T, n> pack; // that nobody reads again
    if constexpr (pack.size == 16) {
        const uint4 v = __ldcs(reinterpret_cast<const uint4 *>(from));
        pack.word[0] = v.x, pack.word[1] = v.y, pack.word[2] = v.z, pack.word[3] = v.w;
    } else if constexpr (pack.size == 8) {
        const uint2 v = __ldcs(reinterpret_cast<const uint2 *>(from));
        pack.word[0] = v.x, pack.word[1] = v.y;
    } else if constexpr (pack.size == 4) {
        pack.word[0] = __ldcs(reinterpret_cast<const uint32_t *>(from));
    } else {
        pack.word[0] = __ldcs(from);
    }
    return pack;
}
template <typename T, int n>
__device__ __forceinline__ void lb_write(T *to, const lb_pack<T, n> &pack) {
    const uint32_t *w = pack.word;
    if constexpr (pack.size == 16)
        *reinterpret_cast<uint4 *>(to) = make_uint4(w[0], w[1], w[2], w[3]);
    else if constexpr (pack.size == 8)
        *reinterpret_cast<uint2 *>(to) = make_uint2(w[0], w[1]);
    else if constexpr (pack.size == 4)
        *reinterpret_cast<uint32_t *>(to) = w[0];
    else
        *to = (T)w[0];
}

// The same for floats of a type.
template <lowbit_float type, int n>
__device__ __forceinline__ void lb_load(float (&values)[n],
                                        const typename Float<type>::Bits *from) {
    const auto pack = lb_read<typename Float<type>::Bits, n>(from);
    for (int i = 0; i < n; i++)
        values[i] = Float<type>::load(pack.get(i));
}
template <lowbit_float type, int n>
__device__ __forceinline__ void lb_store(typename Float<type>::Bits *to, const float (&values)[n]) {
    lb_pack<typename Float<type>::Bits, n> pack;
    for (int i = 0; i < n; i++)
        pack.set(i, Float<type>::store(values[i]));
    lb_write(to, pack);
}

#endif
