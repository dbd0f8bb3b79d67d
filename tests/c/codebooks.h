// SPDX-License-Identifier: MIT
// Codebooks of 256 values of every kind, and inputs that lie where codes change.
#ifndef LOWBIT_TESTS_CODEBOOKS_H
#define LOWBIT_TESTS_CODEBOOKS_H

#include "samples.h"

// The map of the 8-bit optimizers (Dettmers et al., 2022, arXiv:2110.02861): seven decades, twice as
// many values in each as in the one below, in the middles of equal steps; 0 and 1.
inline std::vector<float> dynamic_map(bool with_sign) {
    std::vector<float> values = {0, 1};
    for (int decade = 0; decade < 7; decade++) {
        const int steps = with_sign ? 1 << decade : 2 << decade;
        for (int i = 0; i < steps; i++) {
            const double value = (0.1 + 0.9 * (i + 0.5) / steps) * std::pow(10, decade - 6);
            values.push_back((float)value);
            if (with_sign)
                values.push_back((float)-value);
        }
    }
    return values;
}

enum Codebook {
    dynamic_signed,
    dynamic_unsigned,
    even_steps, // symmetric, without 0
    uneven_steps,
    few_values, // each many times
    one_value,
    padded,        // a short map, its ends repeated
    crowded,       // floats next to each other
    tiny,          // below the first bucket, subnormals, zeros of both signs
    wide,          // beyond 1
    whole_range,   // any finite floats
    codebook_kinds // how many there are
};

inline const char *codebook_name(int kind) {
    static const char *const names[] = {"dynamic signed", "dynamic unsigned", "even steps",
                                        "uneven steps",   "few values",       "one value",
                                        "padded",         "crowded",          "tiny",
                                        "wide",           "whole range"};
    return names[kind];
}

inline float finite_float(Random &random) {
    const uint32_t bits = (uint32_t)random.bits();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return std::isfinite(value) ? value : 0;
}

inline Tensor codebook(int kind, Random &random) {
    std::vector<float> values;
    const float center = random.uniform(-1, 1), few[] = {-0.5f, -0.0f, 0.0f, 0.25f, 1.0f};
    if (kind == dynamic_signed || kind == dynamic_unsigned)
        values = dynamic_map(kind == dynamic_signed);
    float next = center;
    while (values.size() < 256) {
        const int i = (int)values.size();
        next = std::nextafter(next, INFINITY);
        values.push_back(kind == even_steps     ? ((float)i - 127.5f) / 127.5f
                         : kind == uneven_steps ? random.uniform(-1, 1)
                         : kind == few_values   ? random.pick(few)
                         : kind == padded  ? std::min(std::max(((float)i - 100) / 50, -1.0f), 1.0f)
                         : kind == crowded ? (random.one_in(2) ? random.uniform(-1, 1) : next)
                         : kind == tiny
                             ? std::ldexp(finite_float(random), -152 + (int)random.below(5))
                         : kind == wide        ? random.uniform(-3, 3)
                         : kind == whole_range ? finite_float(random)
                                               : center);
    }
    std::sort(values.begin(), values.end());
    Tensor tensor = Tensor::vector(LOWBIT_FLOAT32, 256);
    for (size_t i = 0; i < 256; i++)
        tensor.set(i, 0, values[i]);
    tensor.make_read_only();
    return tensor;
}

// Midpoints of neighbouring values and the floats around them, times a power of two that each block
// holds too, so that dividing by absmax is exact.
inline void fill_midpoints(Tensor &x, const Tensor &codebook, size_t blocksize, Random &random) {
    for (size_t begin = 0; begin < x->rows; begin += blocksize) {
        const float scale = std::ldexp(1.0f, (int)random.below(40) - 20);
        for (size_t i = begin; i < x->rows && i < begin + blocksize; i++) {
            const size_t code = random.below(255);
            const double a = codebook.get(code, 0), b = codebook.get(code + 1, 0);
            float v = (float)((a + b) / 2);
            for (size_t steps = random.below(4); steps; steps--)
                v = std::nextafter(v, random.one_in(2) ? INFINITY : -INFINITY);
            x.set(i, 0, std::fabs(v) < 1 ? v * scale : random.one_in(2) ? scale : -scale);
        }
        x.set(begin + random.below(std::min(blocksize, x->rows - begin)), 0, scale);
    }
}

#endif
