// SPDX-License-Identifier: MIT
// The float types that kernels read and write, one element at a time. Every function here is a
// static inline and takes the type as a constant, so that a kernel compiles to one loop per type.
#ifndef LOWBIT_KERNELS_CPU_COMMON_FLOATS_H
#define LOWBIT_KERNELS_CPU_COMMON_FLOATS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LOWBIT_INLINE static inline __attribute__((always_inline))

enum lowbit_float { f32, f16, bf16 };

LOWBIT_INLINE size_t lowbit_float_size(enum lowbit_float type) {
    return type == f32 ? 4 : 2;
}

LOWBIT_INLINE float lowbit_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

LOWBIT_INLINE uint32_t lowbit_float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// Exact. A subnormal half is a whole number of 2^-24.
LOWBIT_INLINE float lowbit_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return lowbit_float_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0)
        return lowbit_float_from_bits(sign | lowbit_float_bits((float)mantissa * 0x1p-24f));
    return lowbit_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Rounds half to even; NaN becomes 7e00.
LOWBIT_INLINE uint16_t lowbit_f32_to_f16(float value) {
    uint32_t bits = lowbit_float_bits(value), sign = bits >> 16 & 0x8000,
             magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return 0x7e00;
    if (magnitude >= 0x477ff000) // 65520 and above round to infinity
        return (uint16_t)(sign | 0x7c00);
    if (magnitude <
        0x38800000) { // below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits
        uint32_t sum = lowbit_float_bits(lowbit_float_from_bits(magnitude) + 0.5f);
        return (uint16_t)(sign | (sum - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

LOWBIT_INLINE float lowbit_bf16_to_f32(uint16_t b) {
    return lowbit_float_from_bits((uint32_t)b << 16);
}

// Rounds half to even; NaN becomes 7fc0.
LOWBIT_INLINE uint16_t lowbit_f32_to_bf16(float value) {
    uint32_t bits = lowbit_float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Element i of an array of this type.
LOWBIT_INLINE float lowbit_float_load(enum lowbit_float type, const void *array, size_t i) {
    uint16_t half;
    if (type == f32) {
        float value;
        memcpy(&value, (const float *)array + i, 4);
        return value;
    }
    memcpy(&half, (const uint16_t *)array + i, 2);
    return type == f16 ? lowbit_f16_to_f32(half) : lowbit_bf16_to_f32(half);
}

// Rounds half to even and stores; a NaN as the positive quiet NaN.
LOWBIT_INLINE void lowbit_float_store(enum lowbit_float type, void *array, size_t i, float value) {
    if (type == f32) {
        uint32_t bits = value != value ? 0x7fc00000 : lowbit_float_bits(value);
        memcpy((float *)array + i, &bits, 4);
        return;
    }
    uint16_t half = type == f16 ? lowbit_f32_to_f16(value) : lowbit_f32_to_bf16(value);
    memcpy((uint16_t *)array + i, &half, 2);
}

#endif
