// SPDX-License-Identifier: MIT
// The micro-kernels for a tile around the matrix product: epilogue, panel and fma.
// Each equals, in bits, the scalar row of its signature and type; and the scalar row is within
// rounding of the same computed in float64.

#include "elementwise_testing.h"

namespace {

class Epilogue : public UkernelTest<Variant<lowbit_int8_epilogue_ukernel>> {};

void expect_epilogue(lowbit_float type, const lowbit_int8_epilogue_args &a, const Floats &y) {
    for (size_t m = 0; m < a.m; m++)
        for (size_t n = 0; n < a.n; n++) {
            const double product = (double)a.s[n] * a.acc[m * a.acc_stride + n] * a.r[m];
            const double shift = a.offset ? (double)a.offset[n] * a.xsum[m] * a.r[m] : 0;
            const double o = a.o ? a.o[m * a.o_stride + n] : 0, bias = a.bias ? a.bias[n] : 0;
            const double size =
                std::fabs(product) + std::fabs(shift) + std::fabs(o) + std::fabs(bias);
            expect_rounded(type, product + shift + o + bias, 7 * epsilon * size + 0x1p-140,
                           y.get(m * a.y_stride / lowbit_float_size(type) + n));
        }
}

TEST_P(Epilogue, EqualsScalar) {
    const std::string &name = GetParam().name;
    const lowbit_float type = type_of(name);
    lowbit_int8_epilogue_ukernel *reference = scalar(rows().epilogue, name);
    Random random(4);
    for (size_t n = 1; n <= LOWBIT_INT8_TILE_N; n++)
        for (int given = 0; given < 8; given++)
            for (bool wild : {false, true}) {
                const size_t m =
                    random.one_in(16) ? (size_t)LOWBIT_INT8_TILE_M : 1 + random.below(4);
                const size_t acc_stride = (n + 15) / 16 * 16 + 16 * random.below(2);
                const size_t o_stride = n + random.below(3), y_stride = n + random.below(3);
                const Array<int32_t> acc((m - 1) * acc_stride + n), xsum(m);
                const Array<float> r(m), s(n), offset(n), bias(n), o((m - 1) * o_stride + n);
                const int bits = random.one_in(2) ? 32 : 12;
                for (size_t i = 0; i < acc.size(); i++)
                    acc[i] = (int32_t)((uint32_t)random.bits() << (32 - bits)) >> (32 - bits);
                for (size_t i = 0; i < m; i++)
                    xsum[i] = (int32_t)random.bits() >> 8;
                for (const Array<float> *values : {&r, &s, &offset, &bias, &o})
                    fill(*values, random, wild);
                const Floats want(type, (m - 1) * y_stride + n), have(type, want.size());
                lowbit_int8_epilogue_args args = {};
                args.m = m;
                args.n = n;
                args.acc = acc.data();
                args.acc_stride = acc_stride;
                args.r = r.data();
                args.xsum = xsum.data();
                args.s = s.data();
                args.offset = given & 1 ? offset.data() : nullptr;
                args.bias = given & 2 ? bias.data() : nullptr;
                args.o = given & 4 ? o.data() : nullptr;
                args.o_stride = o_stride;
                args.y_stride = y_stride * lowbit_float_size(type);
                args.y = want.data();
                reference(&args);
                args.y = have.data();
                GetParam().run(&args);
                ASSERT_TRUE(same_bits(want.data(), have.data(), have.bytes().bytes(),
                                      lowbit_float_size(type)))
                    << "m " << m << ", n " << n << ", y_stride " << y_stride << ", given " << given;
                if (is_scalar(name) && !wild)
                    expect_epilogue(type, args, have);
                if (HasFailure())
                    return;
            }
}

INSTANTIATE_TEST_SUITE_P(, Epilogue, testing::ValuesIn(rows().epilogue), VariantName());

// ---------------------------------------------------------------------------------------------

class Panel : public UkernelTest<Variant<lowbit_int8_panel_ukernel>> {};

TEST_P(Panel, EqualsScalar) {
    lowbit_int8_panel_ukernel *reference = scalar(rows().panel, GetParam().name);
    Random random(5);
    for (size_t n = 1; n <= LOWBIT_INT8_TILE_N; n++)
        for (size_t k : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 200})
            for (bool wild : {false, true}) {
                const GuardedBuffer::Side side = random.pick(sides);
                const size_t w_stride = k + random.below(3), panel_stride = n + random.below(3);
                const Array<int8_t> w((n - 1) * w_stride + k, side);
                for (size_t i = 0; i < w.size(); i++)
                    w[i] = (int8_t)random.bits();
                const Array<float> s(n), offset(n);
                fill(s, random, wild);
                fill(offset, random, wild);
                const float *given = random.one_in(2) ? offset.data() : nullptr;
                const Array<float> want((k - 1) * panel_stride + n, side), have(want.size(), side);
                reference(n, k, w.data(), w_stride, s.data(), given, want.data(), panel_stride);
                GetParam().run(n, k, w.data(), w_stride, s.data(), given, have.data(),
                               panel_stride);
                ASSERT_TRUE(same_bits(want, have, true)) << "n " << n << ", k " << k;
                for (size_t i = 0; is_scalar(GetParam().name) && i < n * k; i++)
                    expect_rounded(f32,
                                   (double)w[i / k * w_stride + i % k] * s[i / k] +
                                       (given ? given[i / k] : 0),
                                   0, have[i % k * panel_stride + i / k]);
                if (HasFailure())
                    return;
            }
}

INSTANTIATE_TEST_SUITE_P(, Panel, testing::ValuesIn(rows().panel), VariantName());

// ---------------------------------------------------------------------------------------------

class Fma : public UkernelTest<Variant<lowbit_int8_fma_ukernel>> {};

void expect_fma(const lowbit_int8_fma_args &a, const Array<float> &before) {
    for (size_t m = 0; m < a.m; m++)
        for (size_t n = 0; n < a.n; n++) {
            double exact = before[m * a.o_stride + n], size = std::fabs(exact);
            size_t steps = a.blocks;
            for (size_t j = a.begin[0]; j < a.begin[a.blocks]; j++, steps++) {
                const double product =
                    (double)a.x[4 * j + m] * a.panel[a.index[j] * a.panel_stride + n];
                exact += product;
                size += std::fabs(product);
            }
            EXPECT_LE(std::fabs(a.o[m * a.o_stride + n] - exact),
                      (double)steps * epsilon * size + 0x1p-140);
        }
}

TEST_P(Fma, EqualsScalar) {
    lowbit_int8_fma_ukernel *reference = scalar(rows().fma, GetParam().name);
    const size_t height = 40; // of the panel
    Random random(6);
    for (size_t n = 1; n <= LOWBIT_INT8_TILE_N; n++)
        for (size_t m = 1; m <= LOWBIT_INT8_FMA_ROWS; m++)
            for (bool finite : {true, false})
                for (bool wild : {false, true}) {
                    const Array<uint32_t> begin(2 + random.below(4));
                    begin[0] = (uint32_t)random.below(3);
                    for (size_t i = 1; i < begin.size(); i++)
                        begin[i] = begin[i - 1] + (uint32_t)random.below(9);
                    const size_t blocks = begin.size() - 1, count = begin[blocks];
                    const Array<uint32_t> index(count);
                    const Array<float> x(4 * count);
                    const size_t panel_stride = n + random.below(3), o_stride = n + random.below(3);
                    const Array<float> panel((height - 1) * panel_stride + n);
                    for (size_t i = 0; i < count; i++)
                        index[i] = (uint32_t)random.below(height);
                    for (size_t i = 0; i < x.size(); i++)
                        x[i] = random.one_in(3) ? 0.0f : sample(random, wild);
                    fill(panel, random, wild && !finite);
                    const Array<float> before((m - 1) * o_stride + n), want(before.size()),
                        have(before.size());
                    for (size_t i = 0; i < before.size(); i++)
                        before[i] = want[i] = have[i] = random.one_in(2) ? 0 : random.uniform(1, 2);
                    lowbit_int8_fma_args args = {};
                    args.m = m;
                    args.n = n;
                    args.blocks = blocks;
                    args.begin = begin.data();
                    args.index = index.data();
                    args.x = x.data();
                    args.panel = panel.data();
                    args.panel_stride = panel_stride;
                    args.o_stride = o_stride;
                    // With a finite panel it must not matter whether zeros are skipped.
                    args.finite = finite && random.one_in(2);
                    args.o = want.data();
                    reference(&args);
                    args.finite = finite;
                    args.o = have.data();
                    GetParam().run(&args);
                    ASSERT_TRUE(same_bits(want, have, true))
                        << "m " << m << ", n " << n << ", finite " << finite;
                    if (is_scalar(GetParam().name) && !wild)
                        expect_fma(args, before);
                    if (HasFailure())
                        return;
                }
}

INSTANTIATE_TEST_SUITE_P(, Fma, testing::ValuesIn(rows().fma), VariantName());

} // namespace
