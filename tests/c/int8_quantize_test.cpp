// SPDX-License-Identifier: MIT
// int8_quantize, int8_quantize_offset and int8_dequantize equal the reference in bits: at every
// instruction set, with every executor, in any floating-point environment.

#include "samples.h"

#include <cfloat>

namespace {

struct Case {
    size_t rows, cols, gap;
    lowbit_dtype dtype, scale_dtype;
    Values values;

    explicit Case(Random &random)
        : rows(random.size(300) - random.one_in(20)), cols(random.size(4100) - random.one_in(20)),
          gap(random.one_in(2) ? random.below(70) : 0), dtype(random.pick(float_dtypes)),
          scale_dtype(random.pick(scale_dtypes)), values(random.pick(value_kinds)) {
        cut(1, rows, cols, 100000);
    }

    Tensor floats() const { return Tensor(dtype, rows, cols, gap); }
    Tensor codes() const { return Tensor(LOWBIT_INT8, rows, cols, gap); }
    Tensor scales() const { return Tensor::vector(scale_dtype, rows); }

    // Floats to quantize, with a NaN or an infinity in some rows.
    Tensor source(Random &random) const {
        Tensor x = floats();
        fill(x, random, values);
        if (scale_dtype == LOWBIT_FLOAT16)
            limit_to_f16(x);
        const float special[] = {NAN, INFINITY, -INFINITY};
        for (size_t row = 0; row < rows && cols; row += random.size(40))
            x.set(row, random.below(cols), random.pick(special));
        x.make_read_only();
        return x;
    }

    std::string text() const {
        return std::to_string(rows) + " x " + std::to_string(cols) + " gap " + std::to_string(gap) +
               " " + dtype_name(dtype) + " absmax " + dtype_name(scale_dtype) + " values " +
               value_names[values];
    }
};

TEST(Int8Quantize, Samples) {
    Random random(20);
    for (int i = 0; i < samples(400) && !HasFailure(); i++) {
        const Case c(random);
        const float thresholds[] = {0, 0, 6, 1, 1e-30f, FLT_TRUE_MIN, FLT_MAX};
        const float threshold = random.pick(thresholds);
        SCOPED_TRACE(c.text() + " threshold " + std::to_string(threshold));
        const Tensor x = c.source(random), expected_q = c.codes(), expected_absmax = c.scales();
        Tensor q = c.codes(), absmax = c.scales();
        ASSERT_TRUE(reference_int8_quantize(x, threshold, expected_q, expected_absmax));
        expect_everywhere(
            [&](const Executor &executor) {
                q.clear();
                absmax.clear();
                return lowbit_int8_quantize(x, threshold, q, absmax, executor);
            },
            [&] {
                EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
                EXPECT_TRUE(same_bits(expected_q, q)) << "q";
            });
    }
}

TEST(Int8Requantize, QuantizesInPlace) {
    Random random(23);
    for (int i = 0; i < samples(100) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor master = c.source(random);
        const Tensor expected_q = c.codes(), expected_absmax = c.scales();
        Tensor q = c.codes(), absmax = c.scales();
        ASSERT_TRUE(reference_int8_quantize(master, 0, expected_q, expected_absmax));
        expect_everywhere(
            [&](const Executor &executor) {
                q.clear();
                absmax.clear();
                return lowbit_int8_requantize(q, absmax, master, executor);
            },
            [&] {
                EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
                EXPECT_TRUE(same_bits(expected_q, q)) << "q";
            });
    }
}

TEST(Int8QuantizeOffset, Samples) {
    Random random(21);
    for (int i = 0; i < samples(400) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor weight = c.source(random);
        const Tensor expected_q = c.codes(), expected_absmax = c.scales(),
                     expected_offset = c.scales();
        Tensor q = c.codes(), absmax = c.scales(), offset = c.scales();
        ASSERT_TRUE(
            reference_int8_quantize_offset(weight, expected_q, expected_absmax, expected_offset));
        expect_everywhere(
            [&](const Executor &executor) {
                q.clear();
                absmax.clear();
                offset.clear();
                return lowbit_int8_quantize_offset(weight, q, absmax, offset, executor);
            },
            [&] {
                EXPECT_TRUE(same_bits(expected_offset, offset)) << "offset";
                EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
                EXPECT_TRUE(same_bits(expected_q, q)) << "q";
            });
    }
}

TEST(Int8Dequantize, Samples) {
    Random random(22);
    for (int i = 0; i < samples(400) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const bool with_offset = random.one_in(2);
        Tensor q = c.codes(), absmax = c.scales(), offset = c.scales(), out = c.floats();
        const Tensor expected = c.floats();
        fill_codes(q, random, -128);
        fill_scales(absmax, offset, random, random.pick(value_kinds));
        for (Tensor *input : {&q, &absmax, &offset})
            input->make_read_only();
        reference_int8_dequantize(q, absmax, or_null(with_offset, offset), expected);
        expect_everywhere(
            [&](const Executor &executor) {
                out.clear();
                return lowbit_int8_dequantize(q, absmax, or_null(with_offset, offset), out,
                                              executor);
            },
            [&] { EXPECT_TRUE(same_bits(expected, out)); });
    }
}

// The rest checks the specification itself, by hand.

TEST(Int8Quantize, TiesGoToEven) {
    const float values[] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f};
    const int codes[] = {127, 0, 2, 2, 0, -2, -2, 126};
    Tensor x(LOWBIT_FLOAT32, 1, 8), q(LOWBIT_INT8, 1, 8);
    const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 1);
    for (size_t k = 0; k < 8; k++)
        x.set(0, k, values[k]);
    ASSERT_EQ(lowbit_int8_quantize(x, 0, q, absmax, nullptr), LOWBIT_OK);
    EXPECT_EQ(absmax.get(0, 0), 127.0f);
    for (size_t k = 0; k < 8; k++)
        EXPECT_EQ(q.at<int8_t>(0, k), codes[k]) << "of " << values[k];
}

TEST(Int8Quantize, Float16AbsmaxIsRoundedUp) {
    const float values[] = {1, 1 + 0x1p-23f, 1 + 0x1p-10f, 65503, 65504, 0x1p-149f, 0x1p-24f, 0};
    const float stored[] = {1, 1 + 0x1p-10f, 1 + 0x1p-10f, 65504, 65504, 0x1p-24f, 0x1p-24f, 0};
    Tensor x(LOWBIT_FLOAT32, 8, 1);
    const Tensor q(LOWBIT_INT8, 8, 1), absmax = Tensor::vector(LOWBIT_FLOAT16, 8);
    for (size_t row = 0; row < 8; row++)
        x.set(row, 0, -values[row]);
    ASSERT_EQ(lowbit_int8_quantize(x, 0, q, absmax, nullptr), LOWBIT_OK);
    for (size_t row = 0; row < 8; row++)
        EXPECT_EQ(absmax.get(row, 0), stored[row]) << "of " << values[row];
}

// What reaches the threshold is an outlier: not in absmax, and coded 0.
TEST(Int8Quantize, OutliersAreLeftOut) {
    const float values[] = {1, std::nextafter(6.0f, 0.0f), 6, -6, 100, NAN, -INFINITY, -2};
    Tensor x(LOWBIT_FLOAT32, 1, 8), q(LOWBIT_INT8, 1, 8);
    const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 1);
    for (size_t k = 0; k < 8; k++)
        x.set(0, k, values[k]);
    ASSERT_EQ(lowbit_int8_quantize(x, 6, q, absmax, nullptr), LOWBIT_OK);
    EXPECT_EQ(absmax.get(0, 0), values[1]);
    const int codes[] = {21, 127, 0, 0, 0, 0, 0, -42};
    for (size_t k = 0; k < 8; k++)
        EXPECT_EQ(q.at<int8_t>(0, k), codes[k]) << "of " << values[k];
}

TEST(Int8QuantizeOffset, CentersTheRow) {
    const float values[] = {1, 2, 3, NAN, INFINITY};
    const int codes[] = {-127, 0, 127, 0, 0};
    Tensor weight(LOWBIT_FLOAT32, 1, 5), q(LOWBIT_INT8, 1, 5);
    const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 1);
    const Tensor offset = Tensor::vector(LOWBIT_FLOAT32, 1);
    for (size_t k = 0; k < 5; k++)
        weight.set(0, k, values[k]);
    ASSERT_EQ(lowbit_int8_quantize_offset(weight, q, absmax, offset, nullptr), LOWBIT_OK);
    EXPECT_EQ(offset.get(0, 0), 2.0f);
    EXPECT_EQ(absmax.get(0, 0), 1.0f);
    for (size_t k = 0; k < 5; k++)
        EXPECT_EQ(q.at<int8_t>(0, k), codes[k]) << "of " << values[k];
}

} // namespace
