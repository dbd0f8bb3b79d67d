// SPDX-License-Identifier: MIT
// Random shapes, dtypes and values for the operator tests.
#ifndef LOWBIT_TESTS_SAMPLES_H
#define LOWBIT_TESTS_SAMPLES_H

#include "testing.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

// How many samples to take of a space that cannot be walked: fewer where each costs ten times more.
inline int samples(int count) {
#if defined(__SANITIZE_ADDRESS__)
    return count / 8 + 1;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    return count / 8 + 1;
#endif
#endif
    return count;
}

// GoogleTest's seed, which changes from run to run, only under --gtest_shuffle; else 0.
// --gtest_random_seed repeats it.
inline uint64_t seed() {
    return GTEST_FLAG_GET(shuffle) ? (uint64_t)testing::UnitTest::GetInstance()->random_seed() : 0;
}

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers with every standard library.
class Random {
  public:
    explicit Random(uint64_t stream) : state_(stream + (seed() << 32)) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    size_t below(size_t n) { return bits() % n; }
    bool one_in(size_t n) { return below(n) == 0; }
    float uniform(float low, float high) {
        return low + (high - low) * ((float)(bits() >> 40) * 0x1p-24f);
    }
    template <typename T, size_t n> T pick(const T (&values)[n]) { return values[below(n)]; }

    // 1..max, each power of two as likely as the next.
    size_t size(size_t max) {
        const auto value = (size_t)std::exp2(uniform(0, std::log2((float)max + 1)));
        return value < max ? value : max;
    }

  private:
    uint64_t state_;
};

const lowbit_dtype float_dtypes[] = {LOWBIT_FLOAT32, LOWBIT_FLOAT16, LOWBIT_BFLOAT16};
const lowbit_dtype scale_dtypes[] = {LOWBIT_FLOAT32, LOWBIT_FLOAT16};

// Halves the larger of n and k until a case costs no more than this many multiply-adds.
inline void cut(size_t m, size_t &n, size_t &k, size_t products) {
    while (m * n * k > products)
        (n > k ? n : k) /= 2;
}

enum Values {
    ordinary,    // within (-3, 3)
    scaled_rows, // ordinary, each row times a power of two from the whole range of fp32
    any_bits,    // all numbers, subnormals, infinities and NaN that the dtype has
    huge,        // near the end of fp32's range, so that products leave it
};

const Values value_kinds[] = {ordinary, ordinary, ordinary, scaled_rows, any_bits};
const char *const value_names[] = {"ordinary", "scaled rows", "any bits", "huge"};

inline void fill(Tensor &t, Random &random, Values values) {
    const float large[] = {1, 1e36f, 9.9e37f, 2e38f, 3e38f, FLT_MAX};
    for (size_t row = 0; row < t->rows; row++) {
        const int exponent = values == scaled_rows ? (int)random.below(278) - 150 : 0;
        for (size_t col = 0; col < t->cols; col++)
            if (values == huge)
                t.set(row, col, random.pick(large) * (random.one_in(2) ? 1 : -1));
            else if (values != any_bits)
                t.set(row, col, std::ldexp(random.uniform(-3, 3), exponent));
            else if (t->dtype == LOWBIT_FLOAT32)
                t.at<uint32_t>(row, col) = (uint32_t)random.bits();
            else
                t.at<uint16_t>(row, col) = (uint16_t)random.bits();
    }
}

inline void fill_codes(Tensor &t, Random &random, int lowest) {
    for (size_t row = 0; row < t->rows; row++)
        for (size_t col = 0; col < t->cols; col++)
            t.at<int8_t>(row, col) = (int8_t)std::max((int)(int8_t)random.bits(), lowest);
}

// absmax and offset of a weight; with any_bits, anything.
inline void fill_scales(Tensor &absmax, Tensor &offset, Random &random, Values values) {
    fill(absmax, random, values);
    if (values != any_bits)
        for (size_t n = 0; n < absmax->rows; n++)
            absmax.set(n, 0, std::fabs(absmax.get(n, 0)));
    fill(offset, random, values);
}

// Brings finite values within the range of scales in float16, whichever way they are rounded; the
// limit is exact in every dtype.
inline void limit_to_f16(Tensor &x) {
    const float limit = 65280;
    for (size_t row = 0; row < x->rows; row++)
        for (size_t col = 0; col < x->cols; col++)
            if (std::isfinite(x.get(row, col)) && std::fabs(x.get(row, col)) > limit)
                x.set(row, col, std::copysign(limit, x.get(row, col)));
}

// The error of rounding a value to dtype: half an ulp, relative, or of a subnormal.
inline double rounding(lowbit_dtype dtype, double value) {
    const double relative = dtype == LOWBIT_FLOAT32   ? 0x1p-24
                            : dtype == LOWBIT_FLOAT16 ? 0x1p-11
                                                      : 0x1p-8;
    return std::fabs(value) * relative + (dtype == LOWBIT_FLOAT16 ? 0x1p-25 : 0x1p-134);
}

inline const lowbit_tensor *or_null(bool given, const Tensor &tensor) {
    return given ? (const lowbit_tensor *)tensor : nullptr;
}

#endif
