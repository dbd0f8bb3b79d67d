// SPDX-License-Identifier: MIT
// Every row of kernels/cpu/int8/grad.inc: the operands in bits, the product within rounding of
// float64.

#include "ukernel_testing.h"

namespace {

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_GRAD(mr, nr, isa, ISA)                                                              \
    LOWBIT_DECLARE_##isa(lowbit_int8_grad_ukernel, lowbit_int8_grad_ukernel_##mr##x##nr##__##isa)
#define LOWBIT_PAIRS(isa, ISA)                                                                     \
    LOWBIT_DECLARE_##isa(lowbit_int8_pairs_ukernel, lowbit_int8_pairs_ukernel__##isa)              \
        LOWBIT_DECLARE_##isa(lowbit_int8_scale_ukernel, lowbit_int8_scale_ukernel__##isa)
#include "../../kernels/cpu/int8/grad.inc"
}
#endif

struct Grad : Variant<lowbit_int8_grad_ukernel> {
    size_t mr;
};

struct Rows {
    std::vector<Grad> grad;
    std::vector<Variant<lowbit_int8_pairs_ukernel>> pairs;
    std::vector<Variant<lowbit_int8_scale_ukernel>> scale;

    Rows() {
        [[maybe_unused]] const auto add_grad = [&](const char *name, uint32_t isa, size_t mr,
                                                   lowbit_int8_grad_ukernel *native,
                                                   lowbit_int8_grad_ukernel *emulated) {
            std::vector<Variant<lowbit_int8_grad_ukernel>> variants;
            add_variants(variants, name, isa, native, emulated);
            for (const auto &variant : variants)
                grad.push_back({variant, mr});
        };
#define LOWBIT_GRAD(mr, nr, isa, ISA)                                                              \
    add_grad(#mr "x" #nr "__" #isa, ISA, mr, lowbit_int8_grad_ukernel_##mr##x##nr##__##isa,        \
             LOWBIT_EMULATED_##isa(lowbit_int8_grad_ukernel_##mr##x##nr##__##isa));
#define LOWBIT_PAIRS(isa, ISA)                                                                     \
    add_variants(pairs, "bf16__" #isa, ISA, lowbit_int8_pairs_ukernel__##isa,                      \
                 LOWBIT_EMULATED_##isa(lowbit_int8_pairs_ukernel__##isa));                         \
    add_variants(scale, "bf16__" #isa, ISA, lowbit_int8_scale_ukernel__##isa,                      \
                 LOWBIT_EMULATED_##isa(lowbit_int8_scale_ukernel__##isa));
#include "../../kernels/cpu/int8/grad.inc"
    }
};

const Rows &rows() {
    static const Rows rows;
    return rows;
}

uint16_t to_bf16(float value) {
    return reference_to_half(LOWBIT_BFLOAT16, value);
}
float from_bf16(uint16_t bits) {
    return reference_from_half(LOWBIT_BFLOAT16, bits);
}

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

// ---------------------------------------------------------------------------------------------

class GradTest : public UkernelTest<Grad> {
  protected:
    Random random{11};

    static size_t round_up(size_t value, size_t multiple) {
        return (value + multiple - 1) / multiple * multiple;
    }

    void multiply(size_t m, size_t n, size_t k) {
        SCOPED_TRACE(testing::Message() << "m " << m << ", n " << n << ", k " << k);
        const size_t padded_m = round_up(m, 16), padded_k = round_up(k, 64);
        const size_t stride = padded_k + 64 * random.below(2), g_stride = n + random.below(3);
        const Array<uint16_t> g((padded_m - 1) * g_stride + n);
        const Array<uint32_t> panel((n / 2 - 1) * stride + padded_k);
        const Array<float> sum((padded_m - 1) * stride + padded_k), before(sum.size());
        // What lies beyond m and k must not matter, not even NaN.
        for (size_t i = 0; i < g.size(); i++)
            g[i] = i / g_stride < m ? to_bf16(random.uniform(-4, 4)) : 0x7fc0;
        for (size_t i = 0; i < panel.size(); i++)
            panel[i] = i % stride >= k ? 0x7fc07fc0
                                       : (uint32_t)to_bf16((int8_t)random.bits()) << 16 |
                                             to_bf16((int8_t)random.bits());
        for (size_t i = 0; i < sum.size(); i++)
            before[i] = sum[i] = i % stride < k ? random.uniform(-100, 100) : NAN;
        lowbit_int8_grad_args args = {};
        args.m = m;
        args.n = n;
        args.k = k;
        args.g = g.data();
        args.g_stride = g_stride;
        args.panel = panel.data();
        args.sum = sum.data();
        args.stride = stride;
        GetParam().run(&args);
        for (size_t i = 0; i < sum.size(); i++) {
            const size_t row = i / stride, column = i % stride;
            if (column >= padded_k) {
                ASSERT_TRUE(same_bits(&before[i], &sum[i], 4, 4)) << "wrote beyond the columns";
            } else if (row < m && column < k) {
                double exact = before[i], size = std::fabs(exact);
                for (size_t j = 0; j < n; j++) {
                    const uint32_t pair = panel[j / 2 * stride + column];
                    const double product = (double)from_bf16(g[row * g_stride + j]) *
                                           from_bf16((uint16_t)(pair >> j % 2 * 16));
                    exact += product;
                    size += std::fabs(product);
                }
                ASSERT_LE(std::fabs(sum[i] - exact), (double)(n + 2) * 0x1p-24 * size)
                    << "row " << row << ", column " << column;
            }
        }
    }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GradTest);

TEST_P(GradTest, IsWithinRounding) {
    for (size_t m = 1; m <= GetParam().mr; m++)
        for (size_t n : {32, 64, 160})
            for (size_t k : {size_t(1), size_t(64), 1 + random.below(200)}) {
                multiply(m, n, k);
                if (HasFailure())
                    return;
            }
    multiply(GetParam().mr, 1024, 130);
}

INSTANTIATE_TEST_SUITE_P(, GradTest, testing::ValuesIn(rows().grad), VariantName());

} // namespace
