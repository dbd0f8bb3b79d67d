// SPDX-License-Identifier: MIT

#include "lowbit/int8_quantize.h"

#include "check.h"
#include "floats.h"
#include "int8_cuda.h"
#include "int8_dispatch.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

struct quantize {
    const lowbit_tensor *x, *q, *absmax, *offset; // offset null: the form without zero-point
    struct lowbit_int8_ukernels ukernels;
    float t;
    bool write; // false: only look for scales that float16 cannot hold
    atomic_size_t next;
    atomic_bool overflow;
};

enum { ROWS = 16 }; // rows that one thread takes at a time

// a - b, rounded up: the error of the rounded difference is itself a float (Knuth's TwoSum).
static float difference_up(float a, float b) {
    const float d = a - b, b_used = a - d, a_used = d + b_used;
    const float error = (a - a_used) + (b_used - b);
    return error > 0.0f ? nextafterf(d, INFINITY) : d;
}

// The float16 just above value >= 0, or value.
static float up_to_f16(float value) {
    uint16_t half = lowbit_f32_to_f16(value);
    if (lowbit_f16_to_f32(half) < value)
        half++;
    return lowbit_f16_to_f32(half);
}

static void store_scale(const lowbit_tensor *scales, size_t row, float value) {
    if (scales->dtype == LOWBIT_FLOAT32)
        lowbit_float_store(f32, scales->data, row, value);
    else
        lowbit_float_store(f16, scales->data, row, value);
}

static void quantize_row(struct quantize *c, size_t row) {
    const lowbit_tensor *x = c->x;
    const void *from = lowbit_float_row(x, row);
    const bool half = c->absmax->dtype == LOWBIT_FLOAT16;
    struct lowbit_int8_range range;
    c->ukernels.range[x->dtype](x->cols, from, c->t, NULL, &range);
    float offset = 0.0f, absmax = lowbit_int8_absmax(&range);
    if (c->offset) {
        offset = 0.5f * range.hi + 0.5f * range.lo;
        if (half)
            offset = lowbit_f16_to_f32(lowbit_f32_to_f16(offset));
        absmax = fmaxf(difference_up(range.hi, offset), difference_up(offset, range.lo));
    }
    if (half)
        absmax = up_to_f16(absmax);
    if (!c->write) {
        if (!(absmax < INFINITY && fabsf(offset) < INFINITY))
            atomic_store_explicit(&c->overflow, true, memory_order_relaxed);
        return;
    }
    store_scale(c->absmax, row, absmax);
    if (c->offset)
        store_scale(c->offset, row, offset);
    c->ukernels.codes[x->dtype](x->cols, from, c->t, offset, lowbit_int8_inverse(absmax),
                                (int8_t *)c->q->data + row * c->q->stride);
}

static void quantize_rows(void *arg, size_t task) {
    struct quantize *c = arg;
    (void)task;
    for (size_t row0; (row0 = ROWS * atomic_fetch_add(&c->next, 1)) < c->x->rows;)
        for (size_t row = row0; row < c->x->rows && row < row0 + ROWS; row++)
            quantize_row(c, row);
}

static void run(struct quantize *c, const lowbit_executor *executor) {
    const size_t pieces = (c->x->rows + ROWS - 1) / ROWS;
    atomic_store(&c->next, 0);
    lowbit_parallel(
        executor,
        lowbit_task_count(executor, pieces, (double)c->x->rows * (double)c->x->cols * 0.4),
        quantize_rows, c);
}

// Scales in float16 may not fit, and nothing may be written then: look at all rows first.
static lowbit_status quantize(const char *op, struct quantize *c, const lowbit_executor *executor) {
    LOWBIT_ON_CUDA(executor, lowbit_int8_quantize_cuda(op, c->x, c->t, c->q, c->absmax, c->offset,
                                                       executor->cuda_stream));
    c->ukernels = lowbit_int8_select_ukernels(lowbit_cpu_isa());
    if (c->absmax->dtype == LOWBIT_FLOAT16) {
        run(c, executor);
        if (atomic_load(&c->overflow))
            return lowbit_fail(
                LOWBIT_INVALID_ARGUMENT,
                "%s: absmax%s of a row is beyond float16's largest value, 65504; use "
                "float32",
                op, c->offset ? " or offset" : "");
    }
    c->write = true;
    run(c, executor);
    return LOWBIT_OK;
}

static lowbit_status check(const char *op, const char *name, const lowbit_tensor *x,
                           const lowbit_tensor *q, const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_tensor(op, name, x, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY, LOWBIT_ANY));
    return lowbit_check_tensor(op, "q", q, LOWBIT_INT8_DTYPE, x->rows, x->cols);
}

lowbit_status lowbit_int8_quantize(const lowbit_tensor *x, float threshold, const lowbit_tensor *q,
                                   const lowbit_tensor *absmax, const lowbit_executor *executor) {
    static const char op[] = "int8_quantize";
    LOWBIT_TRY(check(op, "x", x, q, executor));
    LOWBIT_TRY(lowbit_check_threshold(op, threshold));
    LOWBIT_TRY(lowbit_check_scales(op, absmax, NULL, x->rows));
    struct quantize c = {.x = x, .q = q, .absmax = absmax, .t = lowbit_int8_limit(threshold)};
    return quantize(op, &c, executor);
}

lowbit_status lowbit_int8_requantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                     const lowbit_tensor *master, const lowbit_executor *executor) {
    static const char op[] = "int8_requantize_";
    LOWBIT_TRY(check(op, "master", master, q, executor));
    LOWBIT_TRY(lowbit_check_scales(op, absmax, NULL, master->rows));
    struct quantize c = {.x = master, .q = q, .absmax = absmax, .t = INFINITY};
    return quantize(op, &c, executor);
}

lowbit_status lowbit_int8_quantize_offset(const lowbit_tensor *weight, const lowbit_tensor *q,
                                          const lowbit_tensor *absmax, const lowbit_tensor *offset,
                                          const lowbit_executor *executor) {
    static const char op[] = "int8_quantize_offset";
    LOWBIT_TRY(check(op, "weight", weight, q, executor));
    if (!offset)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: offset is null, expected a tensor", op);
    LOWBIT_TRY(lowbit_check_scales(op, absmax, offset, weight->rows));
    struct quantize c = {.x = weight, .q = q, .absmax = absmax, .offset = offset, .t = INFINITY};
    return quantize(op, &c, executor);
}
