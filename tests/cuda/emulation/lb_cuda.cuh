// SPDX-License-Identifier: MIT
// kernels/cuda/common/lb_cuda.cuh for the CPU, and with it as much of CUDA C++ as the kernels use
// and the toolkit's headers keep from other compilers.
#ifndef LOWBIT_TESTS_CUDA_LB_CUDA_CUH
#define LOWBIT_TESTS_CUDA_LB_CUDA_CUH

#include "device.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

// To other compilers than nvcc the headers give attributes that these do not know.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ use_LB_SHARED_instead
#define __launch_bounds__(...)
#define __grid_constant__

constexpr unsigned LB_WARP = 32, LB_ALL_LANES = 0xffffffffu;

template <typename T> using lb_type = T;

#define LB_SHARED(name, ...)                                                                       \
    static const char name##_key = 0;                                                              \
    lb_type<__VA_ARGS__> &name = *static_cast<lb_type<__VA_ARGS__> *>(                             \
        emu::shared_variable(&name##_key, sizeof(lb_type<__VA_ARGS__>)))
#define LB_DYNAMIC_SHARED(name, ...)                                                               \
    lb_type<__VA_ARGS__> &name = *static_cast<lb_type<__VA_ARGS__> *>(emu::dynamic_shared())

// The arguments live on the launching thread's stack, which no kernel may read: what hands them
// over is not watched.
#define LB_UNWATCHED __attribute__((no_sanitize("thread")))
template <typename... Params, typename... Args>
LB_UNWATCHED cudaError_t lb_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                                   cudaStream_t, Args... args) {
    auto call = [=] LB_UNWATCHED() { kernel(static_cast<Params>(args)...); };
    return emu::launch(
        grid, block, shared, [] LB_UNWATCHED(void *c) { (*static_cast<decltype(call) *>(c))(); },
        &call);
}

template <typename... Args> LB_UNWATCHED cudaError_t lb_launch_early(bool, Args... args) {
    return lb_launch(args...);
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#define LB_EMULATED static __forceinline__
// What touches the kernel's memory for it, having announced that itself.
#define LB_TOUCHING [[maybe_unused]] static __attribute__((noinline, no_sanitize("thread")))
#define LB_SITE __builtin_return_address(0)

// ---- Synchronization ----------------------------------------------------------------------------

LB_EMULATED void __syncthreads(int line = __builtin_LINE()) {
    emu::block_barrier(true, line);
}
LB_EMULATED int __syncthreads_count(int vote, int line = __builtin_LINE()) {
    return (int)emu::block_barrier(vote != 0, line);
}
LB_EMULATED int __syncthreads_and(int vote, int line = __builtin_LINE()) {
    return emu::block_barrier(vote == 0, line) == 0;
}
LB_EMULATED void __threadfence() {
    emu::fence();
}
LB_EMULATED void __syncwarp(unsigned mask = LB_ALL_LANES, int line = __builtin_LINE()) {
    emu::collective(emu::syncwarp, mask, nullptr, line);
}

template <typename T>
LB_EMULATED T lb_shuffle(unsigned mask, T value, decltype(emu::Shuffle::mode) mode, int lane,
                         int width, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move at most 8 bytes");
    emu::Shuffle s = {0, mode, lane, width, 0};
    __builtin_memcpy(&s.value, &value, sizeof value);
    emu::collective(emu::shuffle, mask, &s, line);
    __builtin_memcpy(&value, &s.result, sizeof value);
    return value;
}
template <typename T>
LB_EMULATED T __shfl_sync(unsigned mask, T value, int lane, int width = LB_WARP,
                          int line = __builtin_LINE()) {
    return lb_shuffle(mask, value, emu::Shuffle::index, lane, width, line);
}
template <typename T>
LB_EMULATED T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = LB_WARP,
                             int line = __builtin_LINE()) {
    return lb_shuffle(mask, value, emu::Shuffle::up, (int)delta, width, line);
}
template <typename T>
LB_EMULATED T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = LB_WARP,
                               int line = __builtin_LINE()) {
    return lb_shuffle(mask, value, emu::Shuffle::down, (int)delta, width, line);
}
template <typename T>
LB_EMULATED T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = LB_WARP,
                              int line = __builtin_LINE()) {
    return lb_shuffle(mask, value, emu::Shuffle::lane_xor, lanes, width, line);
}
LB_EMULATED unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    emu::Ballot b = {vote != 0, 0};
    emu::collective(emu::ballot, mask, &b, line);
    return b.result;
}
LB_EMULATED int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return __ballot_sync(mask, vote, line) != 0;
}
LB_EMULATED int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return __ballot_sync(mask, !vote, line) == 0;
}

// mask: all lanes, or a power of two of them from a multiple of it on.
template <typename T>
LB_EMULATED T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    for (int lanes = __builtin_popcount(mask) / 2; lanes; lanes /= 2)
        value = std::max(value, __shfl_xor_sync(mask, value, lanes, LB_WARP, line));
    return value;
}

// ---- Atomics ------------------------------------------------------------------------------------

#define LB_ATOMIC(name, expression)                                                                \
    template <typename T>                                                                          \
    LB_TOUCHING T name(T *address, typename std::common_type<T>::type value) {                     \
        emu::access(address, sizeof(T), emu::Kind::atomic, LB_SITE);                               \
        const T old = *address;                                                                    \
        *address = (expression);                                                                   \
        return old;                                                                                \
    }
LB_ATOMIC(atomicAdd, old + value)
LB_ATOMIC(atomicMax, old > value ? old : value)
LB_ATOMIC(atomicOr, old | value)
LB_ATOMIC(atomicExch, value)

// ---- Loads with a hint, bits, arithmetic --------------------------------------------------------

template <typename T> LB_EMULATED T __ldcs(const T *p) {
    return *p;
}

LB_EMULATED unsigned __float_as_uint(float x) {
    return __builtin_bit_cast(unsigned, x);
}
LB_EMULATED float __uint_as_float(unsigned x) {
    return __builtin_bit_cast(float, x);
}
LB_EMULATED int __float_as_int(float x) {
    return __builtin_bit_cast(int, x);
}
LB_EMULATED float __int_as_float(int x) {
    return __builtin_bit_cast(float, x);
}

LB_EMULATED float __fadd_rn(float a, float b) {
    return a + b;
}
LB_EMULATED float __fsub_rn(float a, float b) {
    return a - b;
}
LB_EMULATED float __fmul_rn(float a, float b) {
    return a * b;
}
LB_EMULATED float __fdiv_rn(float a, float b) {
    return a / b;
}
LB_EMULATED float __fmaf_rn(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
LB_EMULATED float __fsqrt_rn(float a) {
    return __builtin_sqrtf(a);
}

LB_EMULATED float __fsub_ru(float a, float b) {
    const float difference = a - b; // rounded to nearest, and what it lacks (Knuth)
    const double exact = (double)a - (double)b;
    return (double)difference < exact ? std::nextafterf(difference, INFINITY) : difference;
}
LB_EMULATED int __float2int_rn(float a) {
    if (a != a)
        return 0;
    if (a >= 0x1p31f)
        return INT32_MAX;
    return a <= -0x1p31f ? INT32_MIN : (int)std::nearbyintf(a);
}
LB_EMULATED unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
LB_EMULATED int __popc(unsigned x) {
    return __builtin_popcount(x);
}
LB_EMULATED int __ffs(int x) {
    return __builtin_ffs(x);
}

using std::max;
using std::min;

#endif
