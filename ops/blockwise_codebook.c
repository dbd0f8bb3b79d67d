// SPDX-License-Identifier: MIT

#include "blockwise_codebook.h"

#include "check.h"
#include "floats.h"
#include "parallel.h"

#include <math.h>

enum {
    VALUES = 256,
    THRESHOLDS = LOWBIT_BLOCKWISE_THRESHOLDS,
    FIRST = LOWBIT_BLOCKWISE_FIRST,
    BUCKETS = LOWBIT_BLOCKWISE_BUCKETS,
};

// Integers in the order of the floats. Comparing floats would take subnormals for zeros on a thread
// that flushes them.
static int32_t order(float value) {
    const int32_t magnitude = (int32_t)(lowbit_float_bits(value) & 0x7fffffff);
    return signbit(value) ? -magnitude : magnitude;
}

lowbit_status lowbit_check_codebook256(const char *op, const char *name,
                                       const lowbit_tensor *codebook,
                                       const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_vector(op, name, codebook, LOWBIT_FLOAT32_DTYPE, VALUES));
    if (!lowbit_reads_data(executor))
        return LOWBIT_OK;
    const float *values = codebook->data;
    for (size_t i = 0; i < VALUES; i++)
        if (!isfinite(values[i]))
            return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s[%zu] is %g, expected finite values",
                               op, name, i, (double)values[i]);
    for (size_t i = 1; i < VALUES; i++)
        if (order(values[i]) < order(values[i - 1]))
            return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                               "%s: %s[%zu] is %g after %g, expected ascending values", op, name, i,
                               (double)values[i], (double)values[i - 1]);
    return LOWBIT_OK;
}

// The largest float up to the midpoint of a < b, never -0. In double precision a + b is a sum and
// an error (Knuth's TwoSum), and halving is exact.
static float midpoint_down(float a, float b) {
    const double sum = (double)a + b, b_used = sum - a, a_used = sum - b_used;
    const double error = (a - a_used) + (b - b_used);
    float middle = (float)(0.5 * sum);
    if (2.0 * middle > sum || (2.0 * middle == sum && error < 0.0))
        middle = nextafterf(middle, -INFINITY);
    return middle;
}

static size_t bucket_of(float v) {
    const uint32_t upper = lowbit_float_bits(v) >> 16 & 0x7fff;
    size_t bucket = upper < FIRST ? 0 : upper - FIRST;
    bucket = bucket < BUCKETS ? bucket : BUCKETS - 1;
    return signbit(v) ? BUCKETS - 1 - bucket : BUCKETS + bucket;
}

// Numbers in the bucket of such a threshold share its upper half, so their lower halves tell
// whether they are above it. The first bucket of each sign holds others too.
static bool lower_half_decides(float threshold) {
    return fabsf(threshold) >= 0x1p-24f * (1 + 0x1p-7f) && fabsf(threshold) < 1 + 0x1p-7f;
}

// Which decade, as the kernels find it before they look at an edge.
static int decade_of(float y) {
    const float bits = (float)(int32_t)lowbit_float_bits(y);
    return (int)fmaxf(
        fmaf(bits, LOWBIT_BLOCKWISE_DECADES_PER_BIT, LOWBIT_BLOCKWISE_DECADES_AT_ZERO), 0.0f);
}

// A line through the values of each decade, as far as they lie on one: 0, then seven decades whose
// values number 1, 2, 4 ... 64 of each sign, or 2, 4, 8 ... 128, and halve as many parts of
// [0.1, 1] times a power of ten; then 1. It does not matter whether the values really are so: false
// unless the lines give the right code, or say that they cannot, at each threshold; since all of it
// ascends with y, they do so everywhere then.
static bool fit_decades(const float *codebook, struct lowbit_blockwise_encoder *e) {
    const int zero = codebook[0] < 0.0f ? 127 : 0;
    if (codebook[zero] != 0.0f)
        return false;
    for (int i = 1; i <= zero; i++)
        if (codebook[zero - i] != -codebook[zero + i])
            return false;
    const float *threshold = e->threshold + zero; // of magnitudes
    double scale = 1e-7;
    int first = 0, count = 1; // the code of the decade's least value less zero, and its values
    for (int d = 0; d <= 8; d++) {
        const double slope = d >= 1 && d <= 7 ? 0x1p16 * count / (0.9 * scale) : 0.0;
        const double offset = d >= 1 && d <= 7 ? first - count / 9.0 : first + 0.5;
        e->slope[d] = (float)slope;
        e->offset[d] = (float)(0x1p16 * offset + LOWBIT_BLOCKWISE_NEAR / 2);
        e->most[d] = ((first + count) << 16) - (1 << 15);
        for (int i = first; i < first + count - 1; i++) {
            const float place = fmaf(threshold[i], e->slope[d], e->offset[d]);
            const float near = place - 0x1p16f * (float)(i + 1);
            if (!(near >= 0.0f && near < LOWBIT_BLOCKWISE_NEAR))
                return false;
        }
        if (d > 0) {
            const float edge = threshold[first - 1];
            const int below = decade_of(edge), above = decade_of(nextafterf(edge, INFINITY));
            if (!(fmaf(edge, e->slope[d], e->offset[d]) >= 0x1p16f * (float)first) ||
                below > d - 1 || above < d - 1)
                return false;
        }
        e->edge[d] = INT32_MAX;
        if (d < 8) {
            const float edge = threshold[first + count - 1];
            // A magnitude at the exact midpoint belongs to this decade if its number is positive.
            const int opposite = zero - first - count;
            const bool exact = opposite >= 0 && e->threshold[opposite] == -edge;
            e->edge[d] = (int32_t)(2 * lowbit_float_bits(edge) + (exact ? 0 : 1));
        }
        scale *= 10.0;
        first += count;
        count = d == 0 ? (zero ? 1 : 2) : d < 7 ? 2 * count : 1;
    }
    e->edge[15] = e->edge[8];
    e->slope[15] = e->slope[0];
    e->offset[15] = e->offset[0];
    e->most[15] = e->most[0];
    e->zero = (uint8_t)zero;
    return first == VALUES - zero && decade_of(1 + 0x1p-7f) <= 7;
}

void lowbit_blockwise_encoder_init(const float *codebook,
                                   struct lowbit_blockwise_encoder *encoder) {
    float *threshold = encoder->threshold;
    for (size_t i = THRESHOLDS; i < sizeof encoder->threshold / sizeof *threshold; i++)
        threshold[i] = INFINITY;
    for (size_t i = THRESHOLDS; i-- > 0;)
        threshold[i] = codebook[i] == codebook[i + 1] ? threshold[i + 1]
                                                      : midpoint_down(codebook[i], codebook[i + 1]);
    size_t used = THRESHOLDS;
    while (used && threshold[used - 1] >= 1 + 0x1p-7f) // no v is above it
        used--;

    size_t bucket = 0, most = 0;
    encoder->direct = true;
    for (size_t i = 0, end; i < used; i = end) { // thresholds i to end - 1 share a bucket
        const size_t shared = bucket_of(threshold[i]);
        for (end = i + 1; end < used && bucket_of(threshold[end]) == shared; end++)
            ;
        const uint32_t sign = signbit(threshold[i]) ? ~0u : 0;
        const uint32_t lower = (lowbit_float_bits(threshold[i]) ^ sign) & 0xffff;
        while (bucket < shared)
            encoder->bucket[bucket++] = (uint32_t)i << 16 | 0xffff; // nothing is above 0xffff
        encoder->bucket[bucket++] = (uint32_t)end << 24 | (uint32_t)i << 16 | lower;
        encoder->direct &= threshold[i] == threshold[end - 1] && lower_half_decides(threshold[i]);
        most = end - i > most ? end - i : most;
    }
    while (bucket < 2 * BUCKETS)
        encoder->bucket[bucket++] = (uint32_t)used << 16 | 0xffff;
    encoder->span = 1;
    while (2 * encoder->span <= most)
        encoder->span *= 2;
    encoder->has_decades = fit_decades(codebook, encoder);
}

void lowbit_blockwise_decoder_init(const float *codebook,
                                   struct lowbit_blockwise_decoder *decoder) {
    for (size_t i = 0; i < VALUES; i++) {
        const uint32_t bits = lowbit_float_bits(codebook[i]);
        decoder->value[i] = codebook[i];
        for (int j = 0; j < 2; j++)
            decoder->half[j][i] = (uint16_t)(bits >> 16 * j);
        for (int j = 0; j < 4; j++)
            decoder->byte[j][i] = (uint8_t)(bits >> 8 * j);
    }
}
