// SPDX-License-Identifier: MIT
// Square roots and quotients as __fsqrt_rn and __fdiv_rn give them, where nothing overflows and
// nothing is subnormal. These are the instructions that nvcc makes of those, without the test of
// the range and the call behind it, which keep it from mixing the instructions of several elements.
//
// approximation: what ptx::rsqrt and ptx::rcp give. Any that keeps to their bounds would do (a test
// tries them), but for the radicands 0x1.f82294p0 and 0x1.dd26e4p1 and the divisor 0x1.fffffep0,
// times powers of 4 and 2; there the GPU's are known to do, since nvcc relies on them too.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_PLAIN_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_PLAIN_CUH

#include <lb_cuda.cuh>

// v >= 2^-101. NaN for 0.
__device__ __forceinline__ float lb_plain_root(float v, float approximation) {
    const float root = __fmul_rn(v, approximation);
    return __fmaf_rn(__fmaf_rn(-root, root, v), __fmul_rn(0.5f, approximation), root);
}

// m / d, also of m = 0 with either sign; |m| >= 2^-102 otherwise.
__device__ __forceinline__ float lb_plain_quotient(float m, float d, float approximation) {
    const float inverse =
        __fmaf_rn(approximation, __fmaf_rn(-d, approximation, 1.0f), approximation);
    const float quotient = __fmul_rn(m, inverse);
    return __fmaf_rn(-inverse, __fmaf_rn(d, quotient, -m), quotient);
}

#endif
