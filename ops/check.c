// SPDX-License-Identifier: MIT

#include "check.h"

#include "lowbit/cpu.h"

#include "../kernels/cpu/common/floats.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[512];

const char *lowbit_last_error(void) {
    return last_error;
}

lowbit_status lowbit_fail(lowbit_status status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return status;
}

static const char *const dtype_names[] = {"float32", "float16", "bfloat16",
                                          "int8",    "int32",   "uint8"};
static const size_t dtype_sizes[] = {4, 2, 2, 1, 4, 1};
enum { DTYPES = 6 };

static lowbit_status check_dtype(const char *op, const char *name, lowbit_dtype dtype,
                                 unsigned dtypes) {
    if ((unsigned)dtype < DTYPES && dtypes >> dtype & 1)
        return LOWBIT_OK;
    char accepted[64] = "";
    for (int i = 0; i < DTYPES; i++)
        if (dtypes >> i & 1) {
            if (accepted[0])
                strcat(accepted, " or ");
            strcat(accepted, dtype_names[i]);
        }
    return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s has dtype %s, expected %s", op, name,
                       (unsigned)dtype < DTYPES ? dtype_names[dtype] : "unknown", accepted);
}

lowbit_status lowbit_check_tensor(const char *op, const char *name, const lowbit_tensor *t,
                                  unsigned dtypes, size_t rows, size_t cols) {
    if (!t)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s is null, expected a tensor", op, name);
    LOWBIT_TRY(check_dtype(op, name, t->dtype, dtypes));
    if (rows != LOWBIT_ANY && t->rows != rows)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s has %zu rows, expected %zu", op, name,
                           t->rows, rows);
    if (cols != LOWBIT_ANY && t->cols != cols)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s has %zu columns, expected %zu", op,
                           name, t->cols, cols);
    if (t->rows > 1 && t->stride < t->cols)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: %s has stride %zu, expected at least its %zu columns", op, name,
                           t->stride, t->cols);
    size_t size = dtype_sizes[t->dtype], elements;
    if (__builtin_mul_overflow(t->rows, t->stride > t->cols ? t->stride : t->cols, &elements) ||
        elements > PTRDIFF_MAX / size)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: %s of %zu rows with stride %zu is larger than the address space",
                           op, name, t->rows, t->stride);
    if (t->rows && t->cols && !t->data)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: %s has no data, expected %zu x %zu elements", op, name, t->rows,
                           t->cols);
    if ((uintptr_t)t->data % size)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: %s has data at %p, expected an address aligned to %zu bytes", op,
                           name, t->data, size);
    return LOWBIT_OK;
}

lowbit_status lowbit_check_contiguous(const char *op, const char *name, const lowbit_tensor *t,
                                      unsigned dtypes, size_t rows, size_t cols) {
    LOWBIT_TRY(lowbit_check_tensor(op, name, t, dtypes, rows, cols));
    if (t->rows > 1 && t->stride != t->cols)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: %s has stride %zu, expected contiguous rows of %zu columns", op,
                           name, t->stride, t->cols);
    return LOWBIT_OK;
}

lowbit_status lowbit_check_vector(const char *op, const char *name, const lowbit_tensor *t,
                                  unsigned dtypes, size_t size) {
    return lowbit_check_contiguous(op, name, t, dtypes, size, 1);
}

lowbit_status lowbit_check_scales(const char *op, const lowbit_tensor *absmax,
                                  const lowbit_tensor *offset, size_t rows) {
    LOWBIT_TRY(lowbit_check_vector(op, "absmax", absmax, LOWBIT_SCALE_DTYPES, rows));
    if (!offset)
        return LOWBIT_OK;
    LOWBIT_TRY(lowbit_check_vector(op, "offset", offset, LOWBIT_SCALE_DTYPES, rows));
    if (offset->dtype != absmax->dtype)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: offset has dtype %s, expected absmax's %s",
                           op, dtype_names[offset->dtype], dtype_names[absmax->dtype]);
    return LOWBIT_OK;
}

lowbit_status lowbit_check_threshold(const char *op, float threshold) {
    // By its bits: a thread that flushes subnormals takes a negative one for zero.
    const uint32_t bits = lowbit_float_bits(threshold);
    if (bits < 0x7f800000 || bits == 0x80000000)
        return LOWBIT_OK;
    return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                       "%s: threshold is %g, expected a finite number that is not negative", op,
                       (double)threshold);
}

lowbit_status lowbit_check_blocksize(const char *op, size_t blocksize) {
    if (blocksize >= 32 && blocksize <= 4096 && (blocksize & (blocksize - 1)) == 0)
        return LOWBIT_OK;
    return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                       "%s: blocksize is %zu, expected a power of two from 32 to 4096", op,
                       blocksize);
}

lowbit_status lowbit_check_executor(const char *op, const lowbit_executor *executor) {
    if (executor && executor->cuda) {
#if LOWBIT_CUDA
        return LOWBIT_OK;
#else
        return lowbit_fail(LOWBIT_UNSUPPORTED,
                           "%s: executor is a GPU, but this lowbit was built without CUDA", op);
#endif
    }
    if (executor && (!executor->parallel_for || executor->max_tasks == 0))
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: executor has %s, expected parallel_for and max_tasks of at least 1",
                           op, executor->parallel_for ? "max_tasks 0" : "no parallel_for");
    if (!lowbit_cpu_isa())
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: the environment variable LOWBIT_CPU_ISA is \"%s\", expected "
                           "scalar, avx2, avx512vnni, avx512bf16 or amx",
                           op, getenv("LOWBIT_CPU_ISA"));
    return LOWBIT_OK;
}

lowbit_status lowbit_check_workspace(const char *op, const void *workspace, size_t size,
                                     size_t needed) {
    if (size < needed || (!workspace && needed))
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: workspace has %zu bytes, expected %zu", op,
                           workspace ? size : 0, needed);
    if ((uintptr_t)workspace % 64)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: workspace is at %p, expected an address aligned to 64 bytes", op,
                           workspace);
    return LOWBIT_OK;
}
