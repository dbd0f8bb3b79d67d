// SPDX-License-Identifier: MIT

#include "lut4_weight.h"

#include "check.h"
#include "parallel.h"

#include "../kernels/cpu/common/floats.h"

enum { NESTED_BLOCK = 256 };

lowbit_status lowbit_lut4_check_codebook(const char *op, const char *name,
                                         const lowbit_tensor *codebook, size_t values,
                                         const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_vector(op, name, codebook, LOWBIT_FLOAT32_DTYPE, values));
    for (size_t i = 0; lowbit_reads_data(executor) && i < values; i++)
        if ((lowbit_float_bits(((const float *)codebook->data)[i]) & 0x7fffffff) >= 0x7f800000)
            return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                               "%s: %s holds NaN or infinity at %zu, expected finite values", op,
                               name, i);
    return LOWBIT_OK;
}

lowbit_status lowbit_lut4_check_weight(const char *op, const lowbit_lut4_weight *w, size_t n,
                                       size_t k, const lowbit_executor *executor) {
    size_t elements;
    if (__builtin_mul_overflow(n, k, &elements))
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: a weight of %zu x %zu is larger than the address space", op, n, k);
    LOWBIT_TRY(lowbit_check_blocksize(op, w->blocksize));
    const size_t blocks = elements / w->blocksize + (elements % w->blocksize != 0);
    LOWBIT_TRY(lowbit_check_vector(op, "packed", w->packed, LOWBIT_UINT8_DTYPE,
                                   elements / 2 + elements % 2));
    LOWBIT_TRY(lowbit_check_vector(op, "absmax", w->absmax,
                                   LOWBIT_FLOAT32_DTYPE | LOWBIT_UINT8_DTYPE, blocks));
    LOWBIT_TRY(lowbit_lut4_check_codebook(op, "codebook", w->codebook, 16, executor));
    if (w->absmax->dtype == LOWBIT_FLOAT32) {
        if (w->nested_absmax || w->nested_codebook || w->nested_offset)
            return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                               "%s: %s is given with float32 absmax, expected uint8 absmax or none "
                               "of nested_absmax, nested_codebook and nested_offset",
                               op,
                               w->nested_absmax     ? "nested_absmax"
                               : w->nested_codebook ? "nested_codebook"
                                                    : "nested_offset");
        return LOWBIT_OK;
    }
    LOWBIT_TRY(lowbit_check_vector(op, "nested_absmax", w->nested_absmax, LOWBIT_FLOAT32_DTYPE,
                                   blocks / NESTED_BLOCK + (blocks % NESTED_BLOCK != 0)));
    LOWBIT_TRY(
        lowbit_lut4_check_codebook(op, "nested_codebook", w->nested_codebook, 256, executor));
    return lowbit_check_vector(op, "nested_offset", w->nested_offset, LOWBIT_FLOAT32_DTYPE, 1);
}

const float *lowbit_lut4_scales(const lowbit_lut4_weight *w,
                                const struct lowbit_lut4_ukernels *ukernels, size_t first,
                                size_t count, float *buffer) {
    if (w->absmax->dtype == LOWBIT_FLOAT32)
        return (const float *)w->absmax->data + first;
    const uint8_t *codes = (const uint8_t *)w->absmax->data + first;
    const float *nested = w->nested_absmax->data;
    for (size_t i = 0, n; i < count; i += n) {
        const size_t left = NESTED_BLOCK - (first + i) % NESTED_BLOCK;
        n = left < count - i ? left : count - i;
        ukernels->scales(n, codes + i, w->nested_codebook->data, nested[(first + i) / NESTED_BLOCK],
                         *(const float *)w->nested_offset->data, buffer + i);
    }
    return buffer;
}

void lowbit_lut4_read(const lowbit_lut4_weight *w, const struct lowbit_lut4_ukernels *ukernels,
                      lowbit_dtype type, size_t begin, size_t n, float *buffer, void *to) {
    if (n == 0)
        return;
    const size_t first = begin / w->blocksize, last = (begin + n - 1) / w->blocksize;
    const struct lowbit_lut4_run run = {
        .packed = w->packed->data,
        .begin = begin,
        .n = n,
        .codebook = w->codebook->data,
        .s = lowbit_lut4_scales(w, ukernels, first, last - first + 1, buffer),
        .blocksize = w->blocksize,
    };
    ukernels->dequantize[type](&run, to);
}
