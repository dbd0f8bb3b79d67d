// SPDX-License-Identifier: MIT
// The reference against float64. Bounds follow from the equations: u = 2^-24 is the error of one
// fp32 operation, relative to its result.

#include "codebooks.h"

namespace {

const double u = 0x1p-24;

class HalfFormat : public testing::TestWithParam<lowbit_dtype> {
  protected:
    const lowbit_dtype dtype = GetParam();
    const uint16_t infinity = dtype == LOWBIT_FLOAT16 ? 0x7c00 : 0x7f80;
    const int fraction_bits = dtype == LOWBIT_FLOAT16 ? 10 : 7;
    const int min_exponent = dtype == LOWBIT_FLOAT16 ? -14 : -126;

    double value(int bits) const { return reference_from_half(dtype, (uint16_t)bits); }
    uint16_t bits(float v) const { return reference_to_half(dtype, v); }
};

INSTANTIATE_TEST_SUITE_P(, HalfFormat, testing::Values(LOWBIT_FLOAT16, LOWBIT_BFLOAT16),
                         [](const auto &info) { return std::string(dtype_name(info.param)); });

// Zero, and from each number to the next the step that its exponent has, make all of the format.
TEST_P(HalfFormat, EveryNumber) {
    EXPECT_EQ(value(0), 0.0);
    for (int b = 0; b + 1 < infinity; b++) {
        const int exponent = std::max(b >> fraction_bits, 1) - 1 + min_exponent;
        ASSERT_EQ(value(b + 1) - value(b), std::ldexp(1.0, exponent - fraction_bits)) << b;
        ASSERT_EQ(value(b | 0x8000), -value(b)) << b;
    }
    EXPECT_TRUE(std::signbit(value(0x8000)));
    EXPECT_EQ(value(infinity), INFINITY);
    EXPECT_EQ(value(infinity | 0x8000), -INFINITY);
    for (int b = infinity + 1; b < 0x8000; b++)
        ASSERT_TRUE(std::isnan(value(b)) && std::isnan(value(b | 0x8000))) << b;
}

// Numbers, the middles between them, and the floats next to the middles.
TEST_P(HalfFormat, RoundsToNearestEven) {
    for (int b = 0; b < infinity; b++) {
        // What follows the largest number is where infinity would lie if exponents went on.
        const double next = b + 1 < infinity ? value(b + 1) : 2 * value(b) - value(b - 1);
        const double middle = (value(b) + next) / 2;
        ASSERT_EQ(bits((float)value(b)), b);
        if ((float)middle != middle) // bfloat16's smallest subnormals: fp32 has no number between
            continue;
        ASSERT_EQ(bits((float)middle), b + (b & 1)) << b;
        ASSERT_EQ(bits(std::nextafter((float)middle, 0.0f)), b) << b;
        ASSERT_EQ(bits(std::nextafter((float)middle, INFINITY)), b + 1) << b;
        ASSERT_EQ(bits((float)-middle), (b + (b & 1)) | 0x8000) << b;
    }
    EXPECT_EQ(bits(INFINITY), infinity);
    EXPECT_EQ(bits(-INFINITY), infinity | 0x8000);
    EXPECT_EQ(bits(-0.0f), 0x8000);
    const uint16_t nan = dtype == LOWBIT_FLOAT16 ? 0x7e00 : 0x7fc0;
    EXPECT_EQ(bits(NAN), nan);
    EXPECT_EQ(bits(-NAN), nan);
}

// |x_k - q_k absmax / 127| <= absmax / 127 (1/2 + 127 * 2u): half a step, and the two roundings
// of x_k * (127 / absmax).
TEST(Reference, QuantizeIsWithinHalfAStep) {
    Random random(100);
    for (lowbit_dtype scale_dtype : scale_dtypes)
        for (float threshold : {0.0f, 2.0f}) {
            Tensor x(LOWBIT_FLOAT32, 50, 300);
            fill(x, random, ordinary);
            const Tensor q(LOWBIT_INT8, 50, 300), absmax = Tensor::vector(scale_dtype, 50);
            ASSERT_TRUE(reference_int8_quantize(x, threshold, q, absmax));
            for (size_t row = 0; row < 50; row++) {
                const double a = absmax.get(row, 0), step = a / 127;
                double largest = 0;
                for (size_t k = 0; k < 300; k++) {
                    const double value = x.get(row, k), error = value - q.at<int8_t>(row, k) * step;
                    if (threshold != 0 && std::fabs(value) >= threshold) {
                        EXPECT_EQ(q.at<int8_t>(row, k), 0);
                        continue;
                    }
                    largest = std::max(largest, std::fabs(value));
                    ASSERT_LE(std::fabs(error), step * (0.5 + 127 * 2.01 * u));
                }
                EXPECT_GE(a, largest);
                EXPECT_LE(a, largest * (scale_dtype == LOWBIT_FLOAT16 ? 1 + 0x1p-10 : 1));
            }
        }
}

// As above, with one more rounding, that of w_k - offset.
TEST(Reference, QuantizeOffsetIsWithinHalfAStep) {
    Random random(101);
    for (lowbit_dtype scale_dtype : scale_dtypes) {
        Tensor w(LOWBIT_FLOAT32, 50, 300);
        fill(w, random, ordinary);
        const Tensor q(LOWBIT_INT8, 50, 300), absmax = Tensor::vector(scale_dtype, 50);
        const Tensor offset = Tensor::vector(scale_dtype, 50);
        for (size_t row = 0; row < 50; row++)
            for (size_t k = 0; k < 300; k++)
                w.set(row, k, w.get(row, k) + (float)row / 10);
        ASSERT_TRUE(reference_int8_quantize_offset(w, q, absmax, offset));
        for (size_t row = 0; row < 50; row++) {
            const double a = absmax.get(row, 0), o = offset.get(row, 0), step = a / 127;
            double low = INFINITY, high = -INFINITY;
            for (size_t k = 0; k < 300; k++) {
                const double value = w.get(row, k);
                low = std::min(low, value);
                high = std::max(high, value);
                ASSERT_LE(std::fabs(value - (q.at<int8_t>(row, k) * step + o)),
                          step * (0.5 + 127 * 3.01 * u));
            }
            EXPECT_GE(a, std::max(high - o, o - low));
            EXPECT_LE(std::fabs(o - (low + high) / 2),
                      rounding(scale_dtype, o) + 2 * u * std::fabs(o));
        }
    }
}

// s has one rounding, w one or, with offset, an fma's.
TEST(Reference, DequantizeIsRoundedTwice) {
    Random random(102);
    for (lowbit_dtype dtype : float_dtypes)
        for (bool with_offset : {false, true}) {
            Tensor q(LOWBIT_INT8, 20, 100), absmax = Tensor::vector(LOWBIT_FLOAT32, 20);
            Tensor offset = Tensor::vector(LOWBIT_FLOAT32, 20), out(dtype, 20, 100);
            fill_codes(q, random, -127);
            fill(absmax, random, ordinary);
            fill(offset, random, ordinary);
            reference_int8_dequantize(q, absmax, or_null(with_offset, offset), out);
            for (size_t row = 0; row < 20; row++)
                for (size_t k = 0; k < 100; k++) {
                    const double part = q.at<int8_t>(row, k) * (double)absmax.get(row, 0) / 127;
                    const double exact = part + (with_offset ? offset.get(row, 0) : 0);
                    const double error = 2.01 * u * (std::fabs(part) + std::fabs(exact));
                    ASSERT_LE(std::fabs(out.get(row, k) - exact),
                              error + rounding(dtype, std::fabs(exact) + error));
                }
        }
}

struct Linear {
    size_t m, n, k;
    Tensor x{LOWBIT_FLOAT32, m, k}, weight{LOWBIT_INT8, n, k};
    Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, n), offset = Tensor::vector(LOWBIT_FLOAT32, n);
    Tensor bias = Tensor::vector(LOWBIT_FLOAT32, n);

    // exact: x holds whole numbers with 127 among them, so that its codes are x itself.
    Linear(Random &random, size_t m_, size_t n_, size_t k_, bool exact) : m(m_), n(n_), k(k_) {
        fill(x, random, ordinary);
        fill_codes(weight, random, -127);
        fill(absmax, random, ordinary);
        fill(offset, random, ordinary);
        fill(bias, random, ordinary);
        for (size_t row = 0; row < m; row++)
            for (size_t col = 0; col < k; col++)
                if (exact)
                    x.set(row, col, col == 7 ? 127 : (float)random.below(255) - 127);
                else if (random.one_in(50))
                    x.set(row, col, random.uniform(6, 60));
    }

    // The weight's element as a sum of two terms, by magnitude and as it is.
    double magnitude(size_t row, size_t col, bool with_offset) const {
        return std::fabs(weight.at<int8_t>(row, col) * (double)absmax.get(row, 0) / 127) +
               (with_offset ? std::fabs((double)offset.get(row, 0)) : 0);
    }
    double value(size_t row, size_t col, bool with_offset) const {
        return weight.at<int8_t>(row, col) * (double)absmax.get(row, 0) / 127 +
               (with_offset ? offset.get(row, 0) : 0);
    }
};

// Against x W^T + bias. The codes of x contribute half a step each, as in
// QuantizeIsWithinHalfAStep, and nothing where they are exact. An integer product has less than 8
// roundings on its way to y; an outlier's has one for each outlier of its block, one for each
// block, and less than 8 besides.
TEST(Reference, LinearIsCloseToFloat64) {
    Random random(103);
    for (bool exact : {false, true})
        for (bool with_offset : {false, true})
            for (lowbit_dtype y_dtype : float_dtypes) {
                const float threshold = exact ? 0 : 6;
                Linear d(random, 12, 15, 2500, exact);
                const Tensor y(y_dtype, d.m, d.n);
                const lowbit_int8_linear_args args{
                    d.x, d.weight, d.absmax, or_null(with_offset, d.offset), d.bias, threshold, y};
                reference_int8_linear(&args);
                for (size_t row = 0; row < d.m; row++) {
                    double a = 0, outliers = 0;
                    for (size_t k = 0; k < d.k; k++) {
                        const double value = std::fabs(d.x.get(row, k));
                        if (threshold != 0 && value >= threshold)
                            outliers++;
                        else
                            a = std::max(a, value);
                    }
                    const double step = a / 127;
                    for (size_t col = 0; col < d.n; col++) {
                        double sum = d.bias.get(col, 0), magnitude = std::fabs(sum), codes = 0;
                        for (size_t k = 0; k < d.k; k++) {
                            const double value = d.x.get(row, k);
                            const double w = d.magnitude(col, k, with_offset);
                            sum += value * d.value(col, k, with_offset);
                            magnitude += (std::fabs(value) + step) * w;
                            if (!exact && std::fabs(value) < 6)
                                codes += step * (0.5 + 127 * 2.01 * u) *
                                         std::fabs(d.value(col, k, with_offset));
                        }
                        const double bound =
                            codes + (8 + outliers + std::ceil((double)d.k / 1024)) * u * magnitude;
                        ASSERT_LE(std::fabs(y.get(row, col) - sum),
                                  bound + rounding(y_dtype, std::fabs(sum) + bound))
                            << "row " << row << " column " << col << (exact ? " exact" : "")
                            << (with_offset ? " offset" : "");
                    }
                }
            }
}

// Against grad_output W: a product has two roundings in w, one for each of up to 256 n of its
// block, and one for each block.
TEST(Reference, GradInputIsCloseToFloat64) {
    Random random(104);
    for (bool with_offset : {false, true}) {
        Linear d(random, 10, 700, 40, false);
        Tensor grad_output(LOWBIT_FLOAT32, d.m, d.n);
        const Tensor grad_input(LOWBIT_FLOAT32, d.m, d.k);
        fill(grad_output, random, ordinary);
        const lowbit_int8_linear_grad_input_args args{grad_output, d.weight, d.absmax,
                                                      or_null(with_offset, d.offset), grad_input};
        reference_int8_linear_grad_input(&args);
        for (size_t row = 0; row < d.m; row++)
            for (size_t k = 0; k < d.k; k++) {
                double sum = 0, magnitude = 0;
                for (size_t n = 0; n < d.n; n++) {
                    const double g = grad_output.get(row, n);
                    sum += g * d.value(n, k, with_offset);
                    magnitude += std::fabs(g) * d.magnitude(n, k, with_offset);
                }
                ASSERT_LE(std::fabs(grad_input.get(row, k) - sum), (256 + 3 + 3) * u * magnitude);
            }
    }
}

TEST(Reference, MatmulIsExact) {
    Random random(105);
    Tensor a(LOWBIT_INT8, 5, 1000), b(LOWBIT_INT8, 7, 1000);
    const Tensor out(LOWBIT_INT32, 5, 7);
    fill_codes(a, random, -128);
    fill_codes(b, random, -128);
    reference_int8_matmul(a, b, out);
    for (size_t m = 0; m < 5; m++)
        for (size_t n = 0; n < 7; n++) {
            int64_t sum = 0;
            for (size_t k = 0; k < 1000; k++)
                sum += (int64_t)a.at<int8_t>(m, k) * b.at<int8_t>(n, k);
            EXPECT_EQ(out.at<int32_t>(m, n), sum);
        }
}

// No value of the codebook is nearer to v; distances in float64 are exact but for their last bit.
TEST(Reference, BlockwiseCodesAreNearest) {
    Random random(106);
    for (int kind = 0; kind < codebook_kinds; kind++) {
        const Tensor values = codebook(kind, random);
        Tensor x = Tensor::vector(LOWBIT_FLOAT32, 1000);
        const Tensor q = Tensor::vector(LOWBIT_UINT8, 1000);
        const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 4);
        for (bool midpoints : {false, true}) {
            midpoints ? fill_midpoints(x, values, 256, random) : fill(x, random, ordinary);
            reference_blockwise_quantize(x, values, 256, q, absmax);
            for (size_t i = 0; i < 1000; i++) {
                float largest = 0;
                for (size_t k = i / 256 * 256; k < 1000 && k < i / 256 * 256 + 256; k++)
                    largest = std::max(largest, std::fabs(x.get(k, 0)));
                ASSERT_EQ(absmax.get(i / 256, 0), largest);
                const double v = x.get(i, 0) * (1 / largest);
                const int code = q.at<uint8_t>(i, 0);
                const double distance = std::fabs(v - values.get((size_t)code, 0));
                for (int other = 0; other < 256; other++) {
                    const double apart = std::fabs(v - values.get((size_t)other, 0));
                    ASSERT_LE(distance, apart * (1 + 0x1p-52)) << codebook_name(kind);
                    if (other < code) { // equal values have the smallest code
                        ASSERT_LT(values.get((size_t)other, 0), values.get((size_t)code, 0));
                    }
                }
            }
        }
    }
}

} // namespace
