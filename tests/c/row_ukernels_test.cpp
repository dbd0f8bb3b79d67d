// SPDX-License-Identifier: MIT
// The micro-kernels for one row of x, of y or of a weight: range, codes, dequantize, and the
// operands of products of bf16: pairs and scale.
// Each equals, in bits, the scalar row of its signature and type; and the scalar row is within
// rounding of the same computed in float64.

#include "elementwise_testing.h"

namespace {

class Range : public UkernelTest<Variant<lowbit_int8_range_ukernel>> {};
class RangeOfHalves : public Range {};

void expect_range(const Floats &x, float t, const uint64_t *mask, const lowbit_int8_range &range) {
    float lo = INFINITY, hi = -INFINITY;
    size_t outliers = 0;
    for (size_t i = 0; i < x.size(); i++) {
        const float value = x.get(i);
        const bool outlier = std::isnan(value) || std::fabs(value) >= t;
        outliers += outlier;
        if (mask) {
            ASSERT_EQ(mask[i / 64] >> i % 64 & 1, outlier) << "element " << i;
        }
        if (!outlier) {
            lo = std::min(lo, value);
            hi = std::max(hi, value);
        }
    }
    EXPECT_EQ(range.outliers, outliers);
    EXPECT_EQ(range.lo, outliers == x.size() ? 0 : lo);
    EXPECT_EQ(range.hi, outliers == x.size() ? 0 : hi);
    EXPECT_FALSE(range.lo == 0 && std::signbit(range.lo));
    EXPECT_FALSE(range.hi == 0 && std::signbit(range.hi));
}

TEST_P(Range, EqualsScalar) {
    const std::string &name = GetParam().name;
    lowbit_int8_range_ukernel *reference = scalar(rows().range, name);
    Random random(1);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                Floats x(type_of(name), k, side);
                fill(x, random, wild);
                for (float t : thresholds) {
                    const Array<uint64_t> want((k + 63) / 64), have((k + 63) / 64);
                    const bool with_mask = !random.one_in(4);
                    lowbit_int8_range want_range, have_range;
                    reference(k, x.data(), t, with_mask ? want.data() : nullptr, &want_range);
                    GetParam().run(k, x.data(), t, with_mask ? have.data() : nullptr, &have_range);
                    ASSERT_TRUE(same_bits(want, have)) << "mask, k " << k << ", t " << t;
                    ASSERT_TRUE(same_bits(&want_range, &have_range, sizeof have_range, 4))
                        << "lo, hi, outliers, k " << k << ", t " << t;
                    if (is_scalar(name))
                        expect_range(x, t, with_mask ? have.data() : nullptr, have_range);
                    if (HasFailure())
                        return;
                }
            }
}

// All values that 16 bits can have, in a whole block of elements and in the tail behind it.
TEST_P(RangeOfHalves, AreAllRead) {
    Floats x(type_of(GetParam().name), 67);
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        for (size_t i = 0; i < x.size(); i++)
            x.set_bits(i, bits);
        const float value = x.get(0);
        lowbit_int8_range range;
        GetParam().run(x.size(), x.data(), INFINITY, nullptr, &range);
        ASSERT_EQ(range.outliers, std::isfinite(value) ? 0 : x.size()) << "bits " << bits;
        ASSERT_EQ(range.lo, std::isfinite(value) ? value : 0) << "bits " << bits;
        ASSERT_EQ(range.hi, std::isfinite(value) ? value : 0) << "bits " << bits;
    }
}

INSTANTIATE_TEST_SUITE_P(, Range, testing::ValuesIn(rows().range), VariantName());
INSTANTIATE_TEST_SUITE_P(, RangeOfHalves, testing::ValuesIn(halves(rows().range)), VariantName());

// ---------------------------------------------------------------------------------------------

class Codes : public UkernelTest<Variant<lowbit_int8_codes_ukernel>> {};

void expect_codes(const Floats &x, float t, float center, float inv, const int8_t *q, int32_t sum) {
    int64_t total = 0;
    for (size_t i = 0; i < x.size(); i++) {
        const double exact = ((double)x.get(i) - center) * inv;
        total += q[i];
        if (!(std::fabs(x.get(i)) < t)) {
            EXPECT_EQ(q[i], 0);
        } else {
            const double nearest = std::max(-127.0, std::min(exact, 127.0));
            EXPECT_LE(std::fabs(q[i] - nearest), 0.5 + 127 * 2 * epsilon)
                << "x " << x.get(i) << ", center " << center << ", inv " << inv;
        }
    }
    EXPECT_EQ(sum, total);
}

TEST_P(Codes, EqualsScalar) {
    const std::string &name = GetParam().name;
    lowbit_int8_codes_ukernel *reference = scalar(rows().codes, name);
    const float inverses[] = {0.0f, 31.75f, 127 / 3.0f, 1.0f, 200.0f, 0x1p-100f, 127 * 0x1p118f};
    Random random(2);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true})
                for (int i = 0; i < 4; i++) {
                    Floats x(type_of(name), k, side);
                    fill(x, random, wild);
                    const float t = random.pick(thresholds), inv = random.pick(inverses);
                    const float center = random.one_in(2) ? 0.0f : random.uniform(-1, 1);
                    const Array<int8_t> want(k, side), have(k, side);
                    int32_t want_sum = reference(k, x.data(), t, center, inv, want.data());
                    int32_t have_sum = GetParam().run(k, x.data(), t, center, inv, have.data());
                    ASSERT_TRUE(same_bits(want, have))
                        << "k " << k << ", t " << t << ", center " << center << ", inv " << inv;
                    ASSERT_EQ(want_sum, have_sum) << "k " << k;
                    if (is_scalar(name))
                        expect_codes(x, t, center, inv, have.data(), have_sum);
                    if (HasFailure())
                        return;
                }
}

TEST_P(Codes, RoundsHalfToEvenAndClamps) {
    const float values[] = {0.5f,   1.5f,    2.5f, -0.5f, -1.5f, -2.5f, 126.5f, 127.5f,
                            128.0f, -127.5f, 6e4f, -6e4f, 0.0f,  -0.0f, 126.0f, -126.5f};
    const int8_t expected[] = {0, 2, 2, 0, -2, -2, 126, 127, 127, -127, 127, -127, 0, 0, 126, -126};
    const size_t period = sizeof expected;
    Floats x(type_of(GetParam().name), 5 * period);
    for (size_t i = 0; i < x.size(); i++)
        x.set(i, values[i % period]);
    const Array<int8_t> q(x.size());
    GetParam().run(x.size(), x.data(), INFINITY, 0, 1, q.data());
    for (size_t i = 0; i < x.size(); i++)
        EXPECT_EQ(q[i], expected[i % period]) << "value " << values[i % period];
}

INSTANTIATE_TEST_SUITE_P(, Codes, testing::ValuesIn(rows().codes), VariantName());

// ---------------------------------------------------------------------------------------------

class Dequantize : public UkernelTest<Variant<lowbit_int8_dequantize_ukernel>> {};

TEST_P(Dequantize, EqualsScalar) {
    const std::string &name = GetParam().name;
    const lowbit_float type = type_of(name);
    lowbit_int8_dequantize_ukernel *reference = scalar(rows().dequantize, name);
    Random random(3);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true})
                for (bool with_offset : {false, true}) {
                    const Array<int8_t> q(k, side);
                    for (size_t i = 0; i < k; i++)
                        q[i] = (int8_t)random.bits();
                    const float s = sample(random, wild), offset = sample(random, wild);
                    const float *given = with_offset ? &offset : nullptr;
                    const Floats want(type, k, side), have(type, k, side);
                    reference(k, q.data(), s, given, want.data());
                    GetParam().run(k, q.data(), s, given, have.data());
                    ASSERT_TRUE(same_bits(want.data(), have.data(), have.bytes().bytes(),
                                          lowbit_float_size(type)))
                        << "k " << k << ", s " << s << ", offset " << (given ? offset : 0);
                    for (size_t i = 0; is_scalar(name) && i < k; i++)
                        expect_rounded(type, (double)q[i] * s + (given ? offset : 0), 0,
                                       have.get(i));
                    if (HasFailure())
                        return;
                }
}

INSTANTIATE_TEST_SUITE_P(, Dequantize, testing::ValuesIn(rows().dequantize), VariantName());

// ---------------------------------------------------------------------------------------------

class Pairs : public UkernelTest<Variant<lowbit_int8_pairs_ukernel>> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Pairs);

TEST_P(Pairs, HoldTheCodes) {
    Random random(9);
    for (size_t k : lengths())
        for (bool second : {false, true}) {
            const Array<int8_t> low(k), high(k);
            const Array<uint32_t> want(k), have(k);
            for (size_t i = 0; i < k; i++) {
                low[i] = (int8_t)random.bits();
                high[i] = (int8_t)random.bits();
                want[i] = to_bf16(low[i]) | (uint32_t)(second ? to_bf16(high[i]) : 0) << 16;
            }
            GetParam().run(k, low.data(), second ? high.data() : nullptr, have.data());
            ASSERT_TRUE(same_bits(want, have)) << "k " << k << ", second " << second;
        }
}

INSTANTIATE_TEST_SUITE_P(, Pairs, testing::ValuesIn(rows().pairs), VariantName());

// ---------------------------------------------------------------------------------------------

class Scale : public UkernelTest<Variant<lowbit_int8_scale_ukernel>> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Scale);

TEST_P(Scale, RoundsProducts) {
    Random random(10);
    for (size_t n : lengths())
        for (bool wild : {false, true})
            for (bool with_offset : {false, true}) {
                Floats x(bf16, n);
                fill(x, random, wild);
                const Array<float> s(n), offset(n);
                fill(s, random, wild);
                fill(offset, random, wild);
                const Array<uint16_t> want(n), have(n);
                double exact = 0, size = 0;
                for (size_t i = 0; i < n; i++) {
                    want[i] = to_bf16(x.get(i) * s[i]);
                    exact += with_offset ? (double)x.get(i) * offset[i] : 0;
                    size += with_offset ? std::fabs((double)x.get(i) * offset[i]) : 0;
                }
                const float sum =
                    GetParam().run(n, (const uint16_t *)x.data(), s.data(),
                                   with_offset ? offset.data() : nullptr, have.data());
                ASSERT_TRUE(same_bits(want, have)) << "n " << n;
                if (!wild) {
                    ASSERT_LE(std::fabs(sum - exact), (double)(n + 16) * 0x1p-24 * size)
                        << "n " << n;
                }
            }
}

INSTANTIATE_TEST_SUITE_P(, Scale, testing::ValuesIn(rows().scale), VariantName());

} // namespace
