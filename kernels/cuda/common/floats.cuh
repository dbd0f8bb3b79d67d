// SPDX-License-Identifier: MIT
// The float types that kernels read and write, as kernels/cpu/common/floats.h has them for the CPU:
// the same bits.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_FLOATS_CUH

#include <lb_cuda.cuh>
#include <ptx.cuh>

#include "../../cpu/common/floats.h"

#include <type_traits>

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

template <lowbit_float type> using lb_bits = typename Float<type>::Bits;

// How many elements 16 bytes hold.
template <lowbit_float type> constexpr int lb_vector = 16 / sizeof(lb_bits<type>);

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
        ptx::st_v4(to, make_uint4(w[0], w[1], w[2], w[3]));
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

// As lb_store packs them, where none is NaN.
template <lowbit_float type, int n>
__device__ __forceinline__ lb_pack<lb_bits<type>, n> lb_pack_numbers(const float (&values)[n]) {
    lb_pack<lb_bits<type>, n> pack;
    for (int i = 0; i < n; i += pack.per_word)
        if constexpr (type == f32) {
            pack.word[i] = __float_as_uint(values[i]);
        } else if constexpr (type == f16) {
            const __half2 two = __floats2half2_rn(values[i], values[i + 1]);
            pack.word[i / 2] = *reinterpret_cast<const uint32_t *>(&two);
        } else {
            const __nv_bfloat162 two = __floats2bfloat162_rn(values[i], values[i + 1]);
            pack.word[i / 2] = *reinterpret_cast<const uint32_t *>(&two);
        }
    return pack;
}

// Eight elements from element i of n on, zeros or nothing beyond; aligned: array starts at 16 bytes
// and i is a multiple of 8.
template <lowbit_float type>
__device__ __forceinline__ void lb_load8(float (&values)[8], const lb_bits<type> *array, size_t i,
                                         size_t n, bool aligned) {
    if (aligned && i + 8 <= n) {
        constexpr int each = lb_vector<type>;
        for (int j = 0; j < 8; j += each)
            lb_load<type>(reinterpret_cast<float (&)[each]>(values[j]), array + i + j);
    } else {
        for (int j = 0; j < 8; j++)
            values[j] = i + j < n ? Float<type>::load(array[i + j]) : 0.0f;
    }
}
template <lowbit_float type>
__device__ __forceinline__ void lb_store8(lb_bits<type> *array, size_t i, size_t n, bool aligned,
                                          const float (&values)[8]) {
    if (aligned && i + 8 <= n) {
        constexpr int each = lb_vector<type>;
        for (int j = 0; j < 8; j += each)
            lb_store<type>(array + i + j, reinterpret_cast<const float (&)[each]>(values[j]));
    } else {
        for (int j = 0; j < 8 && i + j < n; j++)
            array[i + j] = Float<type>::store(values[j]);
    }
}

// Calls launch with the type as a constant.
template <class Launch> auto lb_with_type(lowbit_float type, Launch launch) {
    switch (type) {
    case f16: return launch(std::integral_constant<lowbit_float, f16>());
    case bf16: return launch(std::integral_constant<lowbit_float, bf16>());
    default: return launch(std::integral_constant<lowbit_float, f32>());
    }
}

inline bool __host__ __device__ lb_aligned(const void *p, size_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Element i of an array whose type is only known at run time.
__device__ __forceinline__ float lb_load_any(lowbit_float type, const void *array, size_t i) {
    switch (type) {
    case f32: return static_cast<const float *>(array)[i];
    case f16: return Float<f16>::load(static_cast<const uint16_t *>(array)[i]);
    default: return Float<bf16>::load(static_cast<const uint16_t *>(array)[i]);
    }
}
__device__ __forceinline__ void lb_store_any(lowbit_float type, void *array, size_t i, float v) {
    switch (type) {
    case f32: static_cast<uint32_t *>(array)[i] = Float<f32>::store(v); break;
    case f16: static_cast<uint16_t *>(array)[i] = Float<f16>::store(v); break;
    default: static_cast<uint16_t *>(array)[i] = Float<bf16>::store(v);
    }
}

#endif
