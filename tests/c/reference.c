// SPDX-License-Identifier: MIT

#include "reference.h"

#include <fenv.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// A 16-bit float: the widths of IEEE 754's formula, with the lowest exponent of a normal number.
struct format {
    int fraction_bits, min_exponent;
    uint16_t infinity, nan;
};

static struct format format_of(lowbit_dtype dtype) {
    const struct format binary16 = {10, -14, 0x7c00, 0x7e00}, bfloat16 = {7, -126, 0x7f80, 0x7fc0};
    return dtype == LOWBIT_FLOAT16 ? binary16 : bfloat16;
}

float reference_from_half(lowbit_dtype dtype, uint16_t bits) {
    const struct format f = format_of(dtype);
    const int magnitude = bits & 0x7fff, sign = bits & 0x8000 ? -1 : 1;
    const int exponent = magnitude >> f.fraction_bits, one = 1 << f.fraction_bits;
    const int fraction = magnitude & (one - 1);
    if (magnitude > f.infinity)
        return NAN;
    if (magnitude == f.infinity)
        return sign * INFINITY;
    if (exponent == 0)
        return copysignf(ldexpf((float)fraction, f.min_exponent - f.fraction_bits), (float)sign);
    return ldexpf((float)(sign * (one + fraction)),
                  exponent - 1 + f.min_exponent - f.fraction_bits);
}

// round: rint for half to even, ceil for up (of a value that is not negative).
static uint16_t to_half(lowbit_dtype dtype, float value, double (*round)(double)) {
    const struct format f = format_of(dtype);
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value))
        return f.nan;
    if (isinf(value))
        return sign | f.infinity;
    // value as a count of the steps between its neighbours. One more than the last count of an
    // exponent is the first number of the next, in bits too.
    int exponent = value == 0 ? f.min_exponent : ilogbf(value);
    if (exponent < f.min_exponent)
        exponent = f.min_exponent;
    const int steps = (int)round(ldexp(fabs((double)value), f.fraction_bits - exponent));
    const int bits = ((exponent - f.min_exponent) << f.fraction_bits) + steps;
    return (uint16_t)(sign | (bits < f.infinity ? bits : f.infinity));
}

uint16_t reference_to_half(lowbit_dtype dtype, float value) {
    return to_half(dtype, value, rint);
}

float reference_get(const lowbit_tensor *t, size_t row, size_t col) {
    const size_t i = row * t->stride + col;
    if (t->dtype == LOWBIT_FLOAT32)
        return ((const float *)t->data)[i];
    return reference_from_half(t->dtype, ((const uint16_t *)t->data)[i]);
}

void reference_set(const lowbit_tensor *t, size_t row, size_t col, float value) {
    const size_t i = row * t->stride + col;
    const uint32_t nan = 0x7fc00000;
    if (t->dtype != LOWBIT_FLOAT32)
        ((uint16_t *)t->data)[i] = reference_to_half(t->dtype, value);
    else if (isnan(value))
        memcpy((float *)t->data + i, &nan, sizeof nan);
    else
        ((float *)t->data)[i] = value;
}

static int8_t *codes(const lowbit_tensor *t, size_t row) {
    return (int8_t *)t->data + row * t->stride;
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    if (!memory)
        abort();
    return memory;
}

// A row of a float tensor as fp32, for the caller to free.
static float *copy_row(const lowbit_tensor *t, size_t row) {
    float *copy = allocate(t->cols, sizeof *copy);
    for (size_t k = 0; k < t->cols; k++)
        copy[k] = reference_get(t, row, k);
    return copy;
}

// Stores a scale that is not negative, rounded up to the tensor's dtype; returns what was stored.
static float set_rounded_up(const lowbit_tensor *t, size_t row, float value) {
    if (t->dtype == LOWBIT_FLOAT32)
        reference_set(t, row, 0, value);
    else
        ((uint16_t *)t->data)[row] = to_half(t->dtype, value, ceil);
    return reference_get(t, row, 0);
}

// a - b exactly, then rounded up. Volatile keeps the compiler from computing it before or after.
static float difference_up(volatile float a, volatile float b) {
    fesetround(FE_UPWARD);
    volatile float difference = a - b;
    fesetround(FE_TONEAREST);
    return difference;
}

static float limit(float threshold) {
    return threshold == 0 ? INFINITY : threshold;
}

static bool is_outlier(float x, float t) {
    return !(fabsf(x) < t);
}

static float inverse(float absmax) {
    return absmax >= 0x1p-118f ? 127 / absmax : 0;
}

static float clamp(float code) {
    return fminf(fmaxf(code, -127), 127);
}

static float max_below(float t, const float *x, size_t k_size) {
    float a = 0;
    for (size_t k = 0; k < k_size; k++)
        if (!is_outlier(x[k], t))
            a = fmaxf(a, fabsf(x[k]));
    return a;
}

bool reference_int8_quantize(const lowbit_tensor *x, float threshold, const lowbit_tensor *q,
                             const lowbit_tensor *absmax) {
    const float t = limit(threshold);
    bool representable = true;
    for (size_t m = 0; m < x->rows; m++) {
        float *row = copy_row(x, m);
        const float stored = set_rounded_up(absmax, m, max_below(t, row, x->cols));
        const float inv = inverse(stored);
        for (size_t k = 0; k < x->cols; k++)
            codes(q, m)[k] = is_outlier(row[k], t) ? 0 : (int8_t)clamp(rintf(row[k] * inv));
        representable = representable && isfinite(stored);
        free(row);
    }
    return representable;
}

bool reference_int8_quantize_offset(const lowbit_tensor *weight, const lowbit_tensor *q,
                                    const lowbit_tensor *absmax, const lowbit_tensor *offset) {
    bool representable = true;
    for (size_t n = 0; n < weight->rows; n++) {
        float *w = copy_row(weight, n);
        float max = -INFINITY, min = INFINITY;
        for (size_t k = 0; k < weight->cols; k++)
            if (isfinite(w[k])) {
                max = fmaxf(max, w[k]);
                min = fminf(min, w[k]);
            }
        // A zero of either sign counts as +0; a row without finite elements as all zero.
        max = max == -INFINITY || max == 0 ? 0 : max;
        min = min == INFINITY || min == 0 ? 0 : min;
        reference_set(offset, n, 0, 0.5f * max + 0.5f * min);
        const float o = reference_get(offset, n, 0);
        const float a = fmaxf(difference_up(max, o), difference_up(o, min));
        const float stored = set_rounded_up(absmax, n, a);
        const float inv = inverse(stored);
        for (size_t k = 0; k < weight->cols; k++)
            codes(q, n)[k] = isfinite(w[k]) ? (int8_t)clamp(rintf((w[k] - o) * inv)) : 0;
        representable = representable && isfinite(stored) && isfinite(o);
        free(w);
    }
    return representable;
}

// w_k = offset ? fma(q_k, s, offset) : q_k * s
static float dequantized(int8_t q, float s, bool with_offset, float offset) {
    return with_offset ? fmaf(q, s, offset) : q * s;
}

void reference_int8_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                               const lowbit_tensor *offset, const lowbit_tensor *out) {
    for (size_t m = 0; m < q->rows; m++) {
        const float s = reference_get(absmax, m, 0) / 127;
        const float o = offset ? reference_get(offset, m, 0) : 0;
        for (size_t k = 0; k < q->cols; k++)
            reference_set(out, m, k, dequantized(codes(q, m)[k], s, offset, o));
    }
}

// Exact while it stays within int32.
static int32_t dot(const int8_t *a, const int8_t *b, size_t k_size) {
    int32_t acc = 0;
    for (size_t k = 0; k < k_size; k++)
        acc += a[k] * b[k];
    return acc;
}

void reference_int8_matmul(const lowbit_tensor *a, const lowbit_tensor *b,
                           const lowbit_tensor *out) {
    for (size_t m = 0; m < a->rows; m++)
        for (size_t n = 0; n < b->rows; n++)
            ((int32_t *)out->data)[m * out->stride + n] = dot(codes(a, m), codes(b, n), a->cols);
}

void reference_int8_linear(const lowbit_int8_linear_args *args) {
    const size_t k_size = args->x->cols;
    const float t = limit(args->threshold);
    int8_t *q = allocate(k_size, sizeof *q);
    for (size_t m = 0; m < args->x->rows; m++) {
        float *x = copy_row(args->x, m);
        const float a = max_below(t, x, k_size), inv = inverse(a), r = a / 127;
        int32_t xsum = 0;
        for (size_t k = 0; k < k_size; k++) {
            q[k] = is_outlier(x[k], t) ? 0 : (int8_t)rintf(x[k] * inv);
            xsum += q[k];
        }
        for (size_t n = 0; n < args->weight->rows; n++) {
            const int8_t *weight = codes(args->weight, n);
            const int32_t acc = dot(q, weight, k_size);
            const float s = reference_get(args->absmax, n, 0) / 127;
            const float offset = args->offset ? reference_get(args->offset, n, 0) : 0;
            const float main =
                r * (args->offset ? fmaf(s, (float)acc, offset * (float)xsum) : s * (float)acc);
            float o = 0;
            for (size_t block = 0; block < k_size; block += 1024) {
                float c = 0;
                for (size_t k = block; k < k_size && k < block + 1024; k++)
                    if (is_outlier(x[k], t))
                        c = fmaf(x[k], dequantized(weight[k], s, args->offset, offset), c);
                o += c;
            }
            float y = main + o;
            if (args->bias)
                y += reference_get(args->bias, n, 0);
            reference_set(args->y, m, n, y);
        }
        free(x);
    }
    free(q);
}

void reference_int8_linear_grad_input(const lowbit_int8_linear_grad_input_args *args) {
    const size_t n_size = args->weight->rows;
    float *s = allocate(n_size, sizeof *s), *offset = allocate(n_size, sizeof *offset);
    for (size_t n = 0; n < n_size; n++) {
        s[n] = reference_get(args->absmax, n, 0) / 127;
        offset[n] = args->offset ? reference_get(args->offset, n, 0) : 0;
    }
    for (size_t m = 0; m < args->grad_output->rows; m++) {
        float *grad_output = copy_row(args->grad_output, m);
        for (size_t k = 0; k < args->weight->cols; k++) {
            float sum = 0;
            for (size_t block = 0; block < n_size; block += 256) {
                float c = 0;
                for (size_t n = block; n < n_size && n < block + 256; n++) {
                    const int8_t q = codes(args->weight, n)[k];
                    c = fmaf(grad_output[n], dequantized(q, s[n], args->offset, offset[n]), c);
                }
                sum += c;
            }
            reference_set(args->grad_input, m, k, sum);
        }
        free(grad_output);
    }
    free(offset);
    free(s);
}

// a + b exactly, then rounded down.
static double sum_down(volatile double a, volatile double b) {
    fesetround(FE_DOWNWARD);
    volatile double sum = a + b;
    fesetround(FE_TONEAREST);
    return sum;
}

void reference_blockwise_quantize(const lowbit_tensor *x, const lowbit_tensor *codebook,
                                  size_t blocksize, const lowbit_tensor *q,
                                  const lowbit_tensor *absmax) {
    const float *values = codebook->data;
    double sums[255];
    for (int code = 0; code < 255; code++)
        sums[code] = sum_down(values[code], values[code + 1]);
    for (size_t begin = 0; begin < x->rows; begin += blocksize) {
        const size_t end = x->rows - begin < blocksize ? x->rows : begin + blocksize;
        float a = 0;
        for (size_t i = begin; i < end; i++)
            if (isfinite(reference_get(x, i, 0)))
                a = fmaxf(a, fabsf(reference_get(x, i, 0)));
        reference_set(absmax, begin / blocksize, 0, a);
        const float inv = a >= 0x1p-126f ? 1 / a : 0;
        for (size_t i = begin; i < end; i++) {
            const float value = reference_get(x, i, 0), v = isfinite(value) ? value * inv : 0;
            int nearest = 0;
            // v is nearer to the greater of two values if 2 v is above their sum: also above the
            // sum rounded down, as no double lies between.
            for (int code = 0; code < 255; code++)
                if (values[code] != values[code + 1] && 2.0 * v > sums[code])
                    nearest = code + 1;
            ((uint8_t *)q->data)[i] = (uint8_t)nearest;
        }
    }
}

void reference_blockwise_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                    const lowbit_tensor *codebook, size_t blocksize,
                                    const lowbit_tensor *out) {
    for (size_t i = 0; i < q->rows; i++)
        reference_set(out, i, 0,
                      ((const float *)codebook->data)[((const uint8_t *)q->data)[i]] *
                          reference_get(absmax, i / blocksize, 0));
}

static double power(double base, uint64_t exponent) {
    double product = 1;
    for (; exponent; exponent /= 2) {
        if (exponent % 2)
            product *= base;
        base *= base;
    }
    return product;
}

static void step_param(const lowbit_adam8bit_step_args *args, const lowbit_adam8bit_param *param) {
    const double beta1 = args->beta1, beta2 = args->beta2;
    const double c1 = 1 - power(beta1, (uint64_t)args->step);
    const double c2 = 1 - power(beta2, (uint64_t)args->step);
    const float b1 = (float)beta1, r1 = (float)(1 - beta1);
    const float b2 = (float)beta2, r2 = (float)(1 - beta2);
    const float size = (float)(args->lr * sqrt(c2) / c1);
    const float e = (float)fmax(args->eps * sqrt(c2), 0x1p-126);
    const float l2 = args->decoupled ? 0 : (float)args->weight_decay;
    const float keep = args->decoupled ? (float)(1 - args->lr * args->weight_decay) : 1;
    const float least = beta1 * beta1 < beta2
                            ? (float)(sqrt((1 - beta2) * (1 - beta1 * beta1 / beta2)) / (1 - beta1))
                            : 0;
    const float scale = (args->maximize ? -1 : 1) * (1 / args->grad_scale);
    const size_t n = param->param.rows;
    float *m = malloc((2 * n + 1) * sizeof *m), *v = m + n;
    for (size_t i = 0; i < n; i++) {
        const size_t block = i / args->blocksize;
        const float p = reference_get(param->master ? param->master : &param->param, i, 0);
        const float m_old =
            ((const float *)args->codebook1->data)[((const uint8_t *)param->exp_avg.data)[i]] *
            reference_get(&param->exp_avg_absmax, block, 0);
        const float v_old =
            ((const float *)args->codebook2->data)[((const uint8_t *)param->exp_avg_sq.data)[i]] *
            reference_get(&param->exp_avg_sq_absmax, block, 0);
        const float g = fmaf(l2, p, reference_get(&param->grad, i, 0) * scale);
        m[i] = fmaf(b1, m_old, r1 * g);
        v[i] = fmaf(b2, v_old, r2 * (g * g));
        if (!isfinite(m[i]) || !isfinite(v[i]) || v[i] < 0) {
            m[i] = m_old;
            v[i] = v_old < 0 ? 0 : v_old;
            continue;
        }
        const float d = fmaxf(sqrtf(v[i]), fabsf(m[i]) * least) + e;
        const float stepped = fmaf(-size, m[i] / d, p * keep);
        if (param->master)
            reference_set(param->master, i, 0, stepped);
        reference_set(&param->param, i, 0, stepped);
    }
    const lowbit_tensor new_m = {m, LOWBIT_FLOAT32, n, 1, 1}, new_v = {v, LOWBIT_FLOAT32, n, 1, 1};
    reference_blockwise_quantize(&new_m, args->codebook1, args->blocksize, &param->exp_avg,
                                 &param->exp_avg_absmax);
    reference_blockwise_quantize(&new_v, args->codebook2, args->blocksize, &param->exp_avg_sq,
                                 &param->exp_avg_sq_absmax);
    free(m);
}

void reference_adam8bit_step(const lowbit_adam8bit_step_args *args) {
    for (size_t i = 0; args->found_inf == 0 && i < args->count; i++)
        step_param(args, &args->params[i]);
}

// Of values sorted with their codes, equal ones by code.
struct level {
    float value;
    uint8_t code;
};

static int by_value(const void *a, const void *b) {
    const struct level *x = a, *y = b;
    return x->value != y->value ? (x->value > y->value) - (x->value < y->value) : x->code - y->code;
}

static uint8_t nearest_level(const struct level *levels, float v) {
    int below = 0;
    for (int j = 0; j < 15; j++)
        below += 0.5f * levels[j].value + 0.5f * levels[j + 1].value < v;
    while (below > 0 && levels[below - 1].value == levels[below].value)
        below--;
    return levels[below].code;
}

static void set_code(uint8_t *packed, size_t i, uint8_t code) {
    if (i % 2)
        packed[i / 2] = (uint8_t)(packed[i / 2] | code);
    else
        packed[i / 2] = (uint8_t)(code << 4);
}

void reference_lut4_quantize(const lowbit_tensor *weight, const lowbit_tensor *codebook,
                             size_t blocksize, const lowbit_tensor *packed,
                             const lowbit_tensor *absmax) {
    const size_t elements = weight->rows * weight->cols;
    struct level levels[16];
    for (uint8_t code = 0; code < 16; code++)
        levels[code] = (struct level){((const float *)codebook->data)[code], code};
    qsort(levels, 16, sizeof *levels, by_value);
    for (size_t begin = 0; begin < elements; begin += blocksize) {
        const size_t end = elements - begin < blocksize ? elements : begin + blocksize;
        float a = 0;
        for (size_t i = begin; i < end; i++)
            if (isfinite(reference_get(weight, 0, i)))
                a = fmaxf(a, fabsf(reference_get(weight, 0, i)));
        reference_set(absmax, begin / blocksize, 0, a);
        const float inv = a >= 0x1p-126f ? 1 / a : 0;
        for (size_t i = begin; i < end; i++) {
            const float value = reference_get(weight, 0, i);
            set_code(packed->data, i, nearest_level(levels, isfinite(value) ? value * inv : 0));
        }
    }
    if (elements % 2)
        set_code(packed->data, elements, nearest_level(levels, 0));
}

static float lut4_scale(const lowbit_lut4_weight *w, size_t block) {
    if (w->absmax->dtype == LOWBIT_FLOAT32)
        return ((const float *)w->absmax->data)[block];
    const float product =
        ((const float *)w->nested_codebook->data)[((const uint8_t *)w->absmax->data)[block]] *
        ((const float *)w->nested_absmax->data)[block / 256];
    return product + *(const float *)w->nested_offset->data;
}

float reference_lut4_element(const lowbit_lut4_weight *w, size_t i) {
    const uint8_t byte = ((const uint8_t *)w->packed->data)[i / 2];
    return ((const float *)w->codebook->data)[i % 2 ? byte & 15 : byte >> 4] *
           lut4_scale(w, i / w->blocksize);
}

void reference_lut4_dequantize(const lowbit_lut4_weight *weight, const lowbit_tensor *out) {
    for (size_t n = 0; n < out->rows; n++)
        for (size_t k = 0; k < out->cols; k++)
            reference_set(out, n, k, reference_lut4_element(weight, n * out->cols + k));
}

// w in fp32, or rounded to bf16.
static double lut4_factor(const lowbit_lut4_weight *weight, size_t i, bool bf16) {
    const float w = reference_lut4_element(weight, i);
    return bf16 ? reference_from_half(LOWBIT_BFLOAT16, reference_to_half(LOWBIT_BFLOAT16, w)) : w;
}

static void add_product(struct reference_sum *sum, double a, double b) {
    sum->value += a * b;
    sum->magnitude += fabs(a * b);
}

struct reference_sum reference_lut4_linear(const lowbit_lut4_linear_args *args, size_t m, size_t n,
                                           bool bf16) {
    struct reference_sum sum = {0, 0};
    const size_t k_size = args->x->cols;
    for (size_t k = 0; k < k_size; k++)
        add_product(&sum, reference_get(args->x, m, k),
                    lut4_factor(&args->weight, n * k_size + k, bf16));
    if (args->bias)
        add_product(&sum, reference_get(args->bias, n, 0), 1);
    return sum;
}

struct reference_sum
reference_lut4_linear_grad_input(const lowbit_lut4_linear_grad_input_args *args, size_t m, size_t k,
                                 bool bf16) {
    struct reference_sum sum = {0, 0};
    for (size_t n = 0; n < args->grad_output->cols; n++)
        add_product(&sum, reference_get(args->grad_output, m, n),
                    lut4_factor(&args->weight, n * args->grad_input->cols + k, bf16));
    return sum;
}
