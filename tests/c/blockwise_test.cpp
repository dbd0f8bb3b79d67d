// SPDX-License-Identifier: MIT
// blockwise_quantize and blockwise_dequantize equal the reference in bits: at every instruction set,
// with every executor, in any floating-point environment.

#include "codebooks.h"

#include <cfloat>

namespace {

const size_t blocksizes[] = {32, 64, 128, 256, 256, 512, 1024, 2048, 4096};

struct Case {
    size_t n, blocksize;
    lowbit_dtype dtype;
    int kind;
    Values values;

    explicit Case(Random &random)
        : n(random.size(70000) - random.one_in(20)), blocksize(random.pick(blocksizes)),
          dtype(random.pick(float_dtypes)), kind((int)random.below(codebook_kinds)),
          values(random.pick(value_kinds)) {}

    Tensor floats() const { return Tensor::vector(dtype, n); }
    Tensor codes() const { return Tensor::vector(LOWBIT_UINT8, n); }
    Tensor scales() const {
        return Tensor::vector(LOWBIT_FLOAT32, (n + blocksize - 1) / blocksize);
    }
    std::string text() const {
        return std::to_string(n) + " in blocks of " + std::to_string(blocksize) + " " +
               dtype_name(dtype) + " values " + value_names[values] + " codebook " +
               codebook_name(kind);
    }
};

TEST(BlockwiseQuantize, Samples) {
    Random random(200);
    for (int i = 0; i < samples(300) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor values = codebook(c.kind, random);
        Tensor x = c.floats(), q = c.codes(), absmax = c.scales();
        const Tensor expected_q = c.codes(), expected_absmax = c.scales();
        if (random.one_in(2))
            fill(x, random, c.values);
        else
            fill_midpoints(x, values, c.blocksize, random);
        const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
        for (size_t k = random.size(3000); k < c.n; k += random.size(3000))
            x.set(k, 0, random.pick(special));
        x.make_read_only();
        reference_blockwise_quantize(x, values, c.blocksize, expected_q, expected_absmax);
        expect_everywhere(
            [&](const Executor &executor) {
                q.clear();
                absmax.clear();
                return lowbit_blockwise_quantize(x, values, c.blocksize, q, absmax, executor);
            },
            [&] {
                EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
                EXPECT_TRUE(same_bits(expected_q, q)) << "q";
            });
    }
}

TEST(BlockwiseDequantize, Samples) {
    Random random(201);
    for (int i = 0; i < samples(300) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor values = codebook(c.kind, random), expected = c.floats();
        Tensor q = c.codes(), absmax = c.scales(), out = c.floats();
        for (size_t k = 0; k < c.n; k++)
            q.at<uint8_t>(k, 0) = (uint8_t)random.bits();
        fill(absmax, random, c.values);
        for (Tensor *input : {&q, &absmax})
            input->make_read_only();
        reference_blockwise_dequantize(q, absmax, values, c.blocksize, expected);
        expect_everywhere(
            [&](const Executor &executor) {
                out.clear();
                return lowbit_blockwise_dequantize(q, absmax, values, c.blocksize, out, executor);
            },
            [&] { EXPECT_TRUE(same_bits(expected, out)); });
    }
}

// The rest checks the specification itself, by hand.

// Quantizes values at every instruction set with absmax 1, the last value.
void expect_codes(const std::vector<float> &codebook, const std::vector<float> &values,
                  const std::vector<int> &codes) {
    Tensor book = Tensor::vector(LOWBIT_FLOAT32, 256);
    for (size_t i = 0; i < 256; i++)
        book.set(i, 0, codebook[std::min(i, codebook.size() - 1)]);
    Tensor x = Tensor::vector(LOWBIT_FLOAT32, values.size());
    const Tensor q = Tensor::vector(LOWBIT_UINT8, values.size());
    const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 1);
    for (size_t i = 0; i < values.size(); i++)
        x.set(i, 0, values[i]);
    expect_everywhere(
        [&](const Executor &executor) {
            return lowbit_blockwise_quantize(x, book, 256, q, absmax, executor);
        },
        [&] {
            EXPECT_EQ(absmax.get(0, 0), values.back());
            for (size_t i = 0; i < values.size(); i++)
                EXPECT_EQ(q.at<uint8_t>(i, 0), codes[i])
                    << "of " << std::hexfloat << values[i] << ", the value at " << i;
        });
}

TEST(BlockwiseQuantize, TiesGoToTheSmallerValue) {
    expect_codes({-1, -0.5f, 0, 0.5f, 1}, {-0.75f, -0.25f, 0.25f, 0.75f, 0.75001f, 1},
                 {0, 1, 2, 3, 4, 4});
}

// The midpoint of 1 and the float above 0.5 is no float, and 0.75 lies below it by 2^-25.
TEST(BlockwiseQuantize, DistancesAreExact) {
    const float above = std::nextafter(0.5f, 1.0f), below = std::nextafter(0.5f, 0.0f);
    const float after = std::nextafter(0.75f, 1.0f), before = std::nextafter(0.75f, 0.0f);
    expect_codes({above, 1}, {before, 0.75f, after, 1}, {0, 0, 1, 1});
    expect_codes({below, 1}, {before, 0.75f, after, 1}, {0, 1, 1, 1});
    // Neighbours have no float between them.
    expect_codes({below, 0.5f, above}, {below, 0.5f, above, 1}, {0, 1, 2, 2});
    // 2^-149 / 2 is no float either: 0 is below the midpoint, 2^-149 above.
    expect_codes({0, FLT_TRUE_MIN}, {-FLT_TRUE_MIN, 0, FLT_TRUE_MIN, 1}, {0, 0, 1, 1});
    expect_codes({-FLT_TRUE_MIN, 0}, {-FLT_TRUE_MIN, -0.0f, FLT_TRUE_MIN, 1}, {0, 1, 1, 1});
    // Doubles cannot hold this sum, 1 + 2^-100.
    expect_codes({0x1p-100f, 1}, {0.5f, std::nextafter(0.5f, 1.0f), 1}, {0, 1, 1});
    expect_codes({-0x1p-100f, 1}, {below, 0.5f, 1}, {0, 1, 1});
}

TEST(BlockwiseQuantize, EqualValuesHaveTheSmallestCode) {
    expect_codes({-1, -0.0f, 0, 0, 0.5f, 0.5f, 1}, {-0.0f, 0, 0.1f, 0.3f, 0.6f, 0.8f, 1},
                 {1, 1, 1, 4, 4, 6, 6});
    expect_codes({0.5f}, {-1, 0, 0.5f, 1}, {0, 0, 0, 0});
}

TEST(BlockwiseQuantize, ZeroStaysZero) {
    std::vector<float> values = dynamic_map(true);
    std::sort(values.begin(), values.end());
    const int zero = (int)(std::find(values.begin(), values.end(), 0.0f) - values.begin());
    expect_codes(values, {0, -0.0f, NAN, INFINITY, -INFINITY, 1e-30f, 1},
                 std::vector<int>(6, zero) = {zero, zero, zero, zero, zero, zero, 255});
}

// 1 / absmax would overflow: such a block is all zeros, but absmax is kept.
TEST(BlockwiseQuantize, BlocksBelowTheNormalNumbersAreZero) {
    const float least = std::nextafter(FLT_MIN, 0.0f);
    expect_codes({-1, 0, 1}, {-least, FLT_TRUE_MIN, least}, {1, 1, 1});
    expect_codes({-1, 0, 1}, {-FLT_MIN, FLT_TRUE_MIN, FLT_MIN}, {0, 1, 2});
    expect_codes({-1, 0, 1}, {-FLT_MAX, FLT_MIN, FLT_MAX}, {0, 1, 2});
}

} // namespace
