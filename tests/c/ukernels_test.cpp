// SPDX-License-Identifier: MIT
// Every row of kernels/cpu/int8/elementwise.inc equals, in bits, the scalar row of its signature
// and type; and the scalar row is within rounding of the same computed in float64.

#include "ukernel_testing.h"

namespace {

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_EMULATE(signature, type, isa)                                                       \
    LOWBIT_DECLARE_##isa(lowbit_int8_##signature##_ukernel,                                        \
                         lowbit_int8_##signature##_ukernel_##type##__##isa)
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_EMULATE(range, type, isa)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_EMULATE(codes, type, isa)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_EMULATE(dequantize, type, isa)
#define LOWBIT_STORE(type, isa, ISA) LOWBIT_EMULATE(store, type, isa)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_EMULATE(epilogue, type, isa)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_EMULATE(panel, type, isa)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_EMULATE(fma, type, isa)
#include "../../kernels/cpu/int8/elementwise.inc"
}
#endif

struct Rows {
    std::vector<Variant<lowbit_int8_range_ukernel>> range;
    std::vector<Variant<lowbit_int8_codes_ukernel>> codes;
    std::vector<Variant<lowbit_int8_dequantize_ukernel>> dequantize;
    std::vector<Variant<lowbit_int8_store_ukernel>> store;
    std::vector<Variant<lowbit_int8_epilogue_ukernel>> epilogue;
    std::vector<Variant<lowbit_int8_panel_ukernel>> panel;
    std::vector<Variant<lowbit_int8_fma_ukernel>> fma;

    Rows() {
#define LOWBIT_ADD(signature, type, isa, ISA)                                                      \
    add_variants(signature, #type "__" #isa, ISA,                                                  \
                 lowbit_int8_##signature##_ukernel_##type##__##isa,                                \
                 LOWBIT_EMULATED_##isa(lowbit_int8_##signature##_ukernel_##type##__##isa));
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_ADD(range, type, isa, ISA)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_ADD(codes, type, isa, ISA)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_ADD(dequantize, type, isa, ISA)
#define LOWBIT_STORE(type, isa, ISA) LOWBIT_ADD(store, type, isa, ISA)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_ADD(epilogue, type, isa, ISA)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_ADD(panel, type, isa, ISA)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_ADD(fma, type, isa, ISA)
#include "../../kernels/cpu/int8/elementwise.inc"
    }
};

const Rows &rows() {
    static const Rows rows;
    return rows;
}

lowbit_float type_of(const std::string &name) {
    return name[0] == 'b' ? bf16 : name[1] == '3' ? f32 : f16;
}

bool is_scalar(const std::string &name) {
    return name.find("__scalar") != std::string::npos;
}

// The scalar row of the same type.
template <typename Function>
Function *scalar(const std::vector<Variant<Function>> &variants, const std::string &name) {
    const std::string wanted = name.substr(0, name.find("__")) + "__scalar";
    for (const auto &variant : variants)
        if (variant.name == wanted)
            return variant.run;
    ADD_FAILURE() << "no row " << wanted;
    return nullptr;
}

// The rows for types of 16 bits.
template <typename Row> std::vector<Row> halves(std::vector<Row> rows) {
    std::erase_if(rows, [](const Row &row) { return type_of(row.name) == f32; });
    return rows;
}

const GuardedBuffer::Side sides[] = {GuardedBuffer::at_end, GuardedBuffer::at_start};

const float thresholds[] = {INFINITY, 6.0f, 3.0f, 0x1p-10f, 0x1p-149f};

// Rounding to fp32, and to a float type, changes a number v by at most relative * |v| + absolute.
const double epsilon = 0x1p-24 * (1 + 0x1p-20);

struct Rounding {
    double relative, absolute, largest;
};

Rounding rounding(lowbit_float type) {
    switch (type) {
    case f32:
        return {epsilon, 0x1p-149, 0x1.fffffep127};
    case f16:
        return {0x1p-11 + epsilon, 0x1p-24, 65504};
    default:
        return {0x1p-8 + epsilon, 0x1p-133, 0x1.fep127};
    }
}

// value was computed in fp32 within error of exact and then rounded.
void expect_rounded(lowbit_float type, double exact, double error, float value) {
    const Rounding r = rounding(type);
    const double bound = (std::fabs(exact) + error) * r.relative + error + r.absolute;
    if (std::isnan(exact)) {
        EXPECT_TRUE(std::isnan(value)) << "expected NaN, got " << value;
    } else if (std::fabs(exact) - bound > r.largest) {
        EXPECT_EQ(value, std::copysign(INFINITY, exact));
    } else if (std::fabs(exact) + bound < r.largest) {
        EXPECT_LE(std::fabs(value - exact), bound) << "expected " << exact << ", got " << value;
    }
}

// ---------------------------------------------------------------------------------------------

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

class Store : public UkernelTest<Variant<lowbit_int8_store_ukernel>> {};

TEST_P(Store, EqualsScalar) {
    const std::string &name = GetParam().name;
    const lowbit_float type = type_of(name);
    lowbit_int8_store_ukernel *reference = scalar(rows().store, name);
    Random random(12);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                const Array<float> x(k, side);
                for (size_t i = 0; i < k; i++)
                    x[i] = sample(random, wild);
                const float base = sample(random, wild);
                const Floats want(type, k, side), have(type, k, side);
                reference(k, x.data(), base, want.data());
                GetParam().run(k, x.data(), base, have.data());
                ASSERT_TRUE(same_bits(want.data(), have.data(), have.bytes().bytes(),
                                      lowbit_float_size(type)))
                    << "k " << k << ", base " << base;
                for (size_t i = 0; is_scalar(name) && i < k; i++)
                    expect_rounded(type, (double)x[i] + base, 0, have.get(i));
                if (HasFailure())
                    return;
            }
}
INSTANTIATE_TEST_SUITE_P(, Store, testing::ValuesIn(rows().store), VariantName());

// ---------------------------------------------------------------------------------------------

class Epilogue : public UkernelTest<Variant<lowbit_int8_epilogue_ukernel>> {};
class EpilogueToHalves : public Epilogue {};

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

// Every half, the numbers midway between two, and their neighbours in fp32.
TEST_P(EpilogueToHalves, RoundsToEach) {
    const lowbit_float type = type_of(GetParam().name);
    const size_t width = 61; // vectors and a tail
    const float one = 1;
    const int32_t xsum = 0;
    const Array<int32_t> acc(width);
    const Array<float> s(width);
    const Floats y(type, width);
    size_t filled = 0;
    const auto flush = [&] {
        lowbit_int8_epilogue_args args = {};
        args.m = 1;
        args.n = filled;
        args.acc = acc.data();
        args.acc_stride = 64;
        args.r = &one;
        args.xsum = &xsum;
        args.s = s.data();
        args.y = y.data();
        GetParam().run(&args);
        for (size_t i = 0; i < filled; i++) // the addition of o makes -0 to +0
            ASSERT_EQ(((uint16_t *)y.data())[i], reference_to_half((lowbit_dtype)type, s[i] + 0.0f))
                << std::hexfloat << s[i];
        filled = 0;
    };
    const uint16_t infinity = type == f16 ? 0x7c00 : 0x7f80;
    for (uint16_t bits = 0; bits < infinity; bits++)
        for (int sign : {1, -1}) {
            const float low = reference_from_half((lowbit_dtype)type, bits);
            const float next = reference_from_half((lowbit_dtype)type, (uint16_t)(bits + 1));
            // Midway to infinity means to the number that would come next if exponents went on.
            const float half_step =
                std::isinf(next)
                    ? (low - reference_from_half((lowbit_dtype)type, (uint16_t)(bits - 1))) / 2
                    : (next - low) / 2;
            const float middle = low + half_step;
            for (float value :
                 {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
                acc[filled] = 1;
                s[filled++] = sign * value;
                if (filled == width)
                    flush();
            }
            if (HasFailure())
                return;
        }
    flush();
}

INSTANTIATE_TEST_SUITE_P(, Epilogue, testing::ValuesIn(rows().epilogue), VariantName());
INSTANTIATE_TEST_SUITE_P(, EpilogueToHalves, testing::ValuesIn(halves(rows().epilogue)),
                         VariantName());

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
