// SPDX-License-Identifier: MIT
// Products of small matrices in one warp, with the instructions that ptx.cuh has for it, and roots
// and quotients by its approximations.
#ifndef LOWBIT_TESTS_CUDA_PTX_KERNELS_H
#define LOWBIT_TESTS_CUDA_PTX_KERNELS_H

#include <cuda_runtime.h>

#include <cstdint>

// d[i][j] = sum of a[i][k] * b[j][k]: int8, a [16][32], b [16][32], d [16][16].
cudaError_t product_s8(const int8_t *a, const int8_t *b, int32_t *d);

// d[i][j] = sum of a[i][k] * b[k][j]: fp16 or bf16, all [16][16].
cudaError_t product_f16(const uint16_t *a, const uint16_t *b, float *d);
cudaError_t product_bf16(const uint16_t *a, const uint16_t *b, float *d);

// Counts in wrong[0] where plain.cuh differs from __fsqrt_rn or __fdiv_rn with the GPU's
// approximations, and in wrong[1] where it does with others that are as good.
cudaError_t wrong_roots(uint32_t *wrong); // of all numbers of 1 to 4
cudaError_t wrong_quotients(uint32_t numbers, uint32_t *wrong);

#endif
