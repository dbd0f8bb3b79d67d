// SPDX-License-Identifier: MIT
// The micro-kernels of the dense family. Each equals, in bits, the scalar row of its signature and
// type, and the scalar row is within rounding of float64; the product of bf16 numbers, which has no
// scalar row, is within rounding of float64 itself.

#include "elementwise_testing.h"

namespace {

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_LOAD(type, isa, ISA)                                                                \
    LOWBIT_DECLARE_##isa(lowbit_dense_load_ukernel, lowbit_dense_load_ukernel_##type##__##isa)
#define LOWBIT_STORE(type, isa, ISA)                                                               \
    LOWBIT_DECLARE_##isa(lowbit_dense_store_ukernel, lowbit_dense_store_ukernel_##type##__##isa)
#define LOWBIT_TRANSPOSE(isa, ISA)                                                                 \
    LOWBIT_DECLARE_##isa(lowbit_dense_transpose_ukernel, lowbit_dense_transpose_ukernel__##isa)
#define LOWBIT_INTERLEAVE(isa, ISA)                                                                \
    LOWBIT_DECLARE_##isa(lowbit_dense_interleave_ukernel, lowbit_dense_interleave_ukernel__##isa)
#include "../../kernels/cpu/dense/elementwise.inc"
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    LOWBIT_DECLARE_##isa(lowbit_dense_gemm_ukernel,                                                \
                         lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa)
#include "../../kernels/cpu/dense/gemm.inc"
LOWBIT_DECLARE_amx(decltype(lowbit_dense_tiles__amx), lowbit_dense_tiles__amx)
}
#endif

struct Gemm : Variant<lowbit_dense_gemm_ukernel> {
    size_t mr;
};

struct DenseRows {
    std::vector<Variant<lowbit_dense_load_ukernel>> load;
    std::vector<Variant<lowbit_dense_store_ukernel>> store;
    std::vector<Variant<lowbit_dense_transpose_ukernel>> transpose;
    std::vector<Variant<lowbit_dense_interleave_ukernel>> interleave;
    std::vector<Gemm> gemm[3]; // by type

    DenseRows() {
#define LOWBIT_ADD_DENSE(signature, row, function, isa, ISA)                                       \
    add_variants(signature, row, ISA, function, LOWBIT_EMULATED_##isa(function));
#define LOWBIT_LOAD(type, isa, ISA)                                                                \
    LOWBIT_ADD_DENSE(load, #type "__" #isa, lowbit_dense_load_ukernel_##type##__##isa, isa, ISA)
#define LOWBIT_STORE(type, isa, ISA)                                                               \
    LOWBIT_ADD_DENSE(store, #type "__" #isa, lowbit_dense_store_ukernel_##type##__##isa, isa, ISA)
#define LOWBIT_TRANSPOSE(isa, ISA)                                                                 \
    LOWBIT_ADD_DENSE(transpose, "dwords__" #isa, lowbit_dense_transpose_ukernel__##isa, isa, ISA)
#define LOWBIT_INTERLEAVE(isa, ISA)                                                                \
    LOWBIT_ADD_DENSE(interleave, "words__" #isa, lowbit_dense_interleave_ukernel__##isa, isa, ISA)
#include "../../kernels/cpu/dense/elementwise.inc"
        const auto add_gemm = [&](lowbit_float type, const char *name, uint32_t isa, size_t mr,
                                  lowbit_dense_gemm_ukernel *native,
                                  lowbit_dense_gemm_ukernel *emulated) {
            std::vector<Variant<lowbit_dense_gemm_ukernel>> variants;
            add_variants(variants, name, isa, native, emulated);
            for (const auto &variant : variants)
                gemm[type].push_back({variant, mr});
        };
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    add_gemm(type, #type "_" #mr "x" #nr "__" #isa, ISA, mr,                                       \
             lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa,                              \
             LOWBIT_EMULATED_##isa(lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa));
#include "../../kernels/cpu/dense/gemm.inc"
    }
};

const DenseRows &dense_rows() {
    static const DenseRows rows;
    return rows;
}

// ---------------------------------------------------------------------------------------------

class Load : public UkernelTest<Variant<lowbit_dense_load_ukernel>> {};
class LoadOfHalves : public Load {};

TEST_P(Load, IsExact) {
    const lowbit_float type = type_of(GetParam().name);
    Random random(13);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides) {
            Floats x(type, k, side);
            const Array<float> want(k, side), have(k, side);
            for (size_t i = 0; i < k; i++) {
                x.set_bits(i, (uint32_t)random.bits());
                want[i] = x.get(i);
            }
            GetParam().run(k, x.data(), have.data());
            ASSERT_TRUE(same_bits(want, have, true)) << "k " << k;
        }
}

TEST_P(LoadOfHalves, AreAllRead) {
    const lowbit_float type = type_of(GetParam().name);
    Floats x(type, 1 << 16);
    const Array<float> want(x.size()), have(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        x.set_bits(i, (uint32_t)i);
        want[i] = x.get(i);
    }
    GetParam().run(x.size(), x.data(), have.data());
    ASSERT_TRUE(same_bits(want, have, true));
}

INSTANTIATE_TEST_SUITE_P(, Load, testing::ValuesIn(dense_rows().load), VariantName());
INSTANTIATE_TEST_SUITE_P(, LoadOfHalves, testing::ValuesIn(halves(dense_rows().load)),
                         VariantName());

// ---------------------------------------------------------------------------------------------

class Store : public UkernelTest<Variant<lowbit_dense_store_ukernel>> {};
class StoreAsHalves : public Store {};

TEST_P(Store, EqualsScalar) {
    const std::string &name = GetParam().name;
    const lowbit_float type = type_of(name);
    lowbit_dense_store_ukernel *reference = scalar(dense_rows().store, name);
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

// Every half, the numbers midway between two, and their neighbours in fp32.
TEST_P(StoreAsHalves, RoundsToEach) {
    const lowbit_float type = type_of(GetParam().name);
    const auto dtype = (lowbit_dtype)type;
    const uint16_t infinity = type == f16 ? 0x7c00 : 0x7f80;
    const auto half = [&](int bits) { return reference_from_half(dtype, (uint16_t)bits); };
    std::vector<float> values;
    for (int bits = 0; bits < infinity; bits++) {
        // Midway to infinity: to the number that would come next if exponents went on.
        const float step =
            bits + 1 < infinity ? half(bits + 1) - half(bits) : half(bits) - half(bits - 1);
        const float middle = half(bits) + step / 2;
        for (float value :
             {half(bits), middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
            values.insert(values.end(), {value, -value});
    }
    const Array<float> x(values.size());
    const Floats y(type, values.size());
    std::copy(values.begin(), values.end(), x.data());
    GetParam().run(values.size(), x.data(), 0, y.data());
    for (size_t i = 0; i < values.size(); i++) // the addition makes -0 to +0
        ASSERT_EQ(((uint16_t *)y.data())[i], reference_to_half(dtype, values[i] + 0.0f))
            << std::hexfloat << values[i];
}

INSTANTIATE_TEST_SUITE_P(, Store, testing::ValuesIn(dense_rows().store), VariantName());
INSTANTIATE_TEST_SUITE_P(, StoreAsHalves, testing::ValuesIn(halves(dense_rows().store)),
                         VariantName());

// ---------------------------------------------------------------------------------------------

class Transpose : public UkernelTest<Variant<lowbit_dense_transpose_ukernel>> {};

TEST_P(Transpose, ExchangesRowsAndColumns) {
    Random random(14);
    const auto check = [&](size_t rows, size_t cols) {
        const GuardedBuffer::Side side = random.pick(sides);
        const size_t from_stride = cols + random.below(3), to_stride = rows + random.below(3);
        const Array<uint32_t> from(rows && cols ? (rows - 1) * from_stride + cols : 0, side);
        const Array<uint32_t> want(rows && cols ? (cols - 1) * to_stride + rows : 0, side);
        const Array<uint32_t> have(want.size(), side);
        for (size_t i = 0; i < from.size(); i++)
            from[i] = (uint32_t)random.bits();
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++)
                want[j * to_stride + i] = from[i * from_stride + j];
        GetParam().run(rows, cols, from.data(), from_stride, have.data(), to_stride);
        ASSERT_TRUE(same_bits(want, have)) << "rows " << rows << ", cols " << cols;
    };
    for (size_t rows = 0; rows <= 40 && !HasFailure(); rows++)
        for (size_t cols = 0; cols <= 40 && !HasFailure(); cols++)
            check(rows, cols);
    check(64, 256);
    check(130, 3);
    check(3, 130);
}

INSTANTIATE_TEST_SUITE_P(, Transpose, testing::ValuesIn(dense_rows().transpose), VariantName());

// ---------------------------------------------------------------------------------------------

class Interleave : public UkernelTest<Variant<lowbit_dense_interleave_ukernel>> {};

TEST_P(Interleave, PutsTwoRowsSideBySide) {
    Random random(15);
    for (size_t k : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool given : {false, true}) {
                const Array<uint16_t> first(k, side), second(k, side);
                const Array<uint32_t> want(k, side), have(k, side);
                for (size_t i = 0; i < k; i++) {
                    first[i] = (uint16_t)random.bits();
                    second[i] = (uint16_t)random.bits();
                    want[i] = first[i] + (given ? (uint32_t)second[i] << 16 : 0);
                }
                GetParam().run(k, first.data(), given ? second.data() : nullptr, have.data());
                ASSERT_TRUE(same_bits(want, have)) << "k " << k << ", second " << given;
            }
}

INSTANTIATE_TEST_SUITE_P(, Interleave, testing::ValuesIn(dense_rows().interleave), VariantName());

// ---------------------------------------------------------------------------------------------
// Products. What lies beyond m and c must not matter, not even NaN; beyond c up to a multiple of 64
// a kernel may write, further it may not.

size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// start and sum, apart or in one place.
struct Sums {
    size_t c, padded, stride, start_stride;
    Array<float> before, sum; // what start holds, and where the sums go
    const float *start;

    Sums(Random &random, bool wild, size_t m, size_t c)
        : c(c), padded(round_up(c, 64)), stride(padded + 64 * random.below(2)),
          start_stride(random.one_in(3) ? 0 : stride),
          before((round_up(m, 16) - 1) * stride + padded), sum(before.size()) {
        for (size_t i = 0; i < sum.size(); i++)
            before[i] = i % stride < c ? sample(random, wild) * 16 : NAN;
        start = before.data();
        if (start_stride && random.one_in(2)) {
            std::copy(start, start + sum.size(), sum.data());
            start = sum.data();
        }
    }
    float at_start(size_t row, size_t column) const { return before[row * start_stride + column]; }
    float operator()(size_t row, size_t column) const { return sum[row * stride + column]; }

    // Multiplies, and expects nothing to be written beyond the columns.
    void add_product(lowbit_dense_gemm_ukernel *multiply, size_t m, size_t r, const void *x,
                     size_t x_stride, const void *panel) const {
        const lowbit_dense_gemm_args args{
            m, c, r, x, x_stride, panel, start, start_stride, sum.data(), stride};
        multiply(&args);
        uint32_t untouched = start == sum.data() ? 0x7fc00000 : 0xa5a5a5a5;
        for (size_t i = 0; i < sum.size(); i++)
            if (i % stride >= padded) {
                ASSERT_TRUE(same_bits(&untouched, &sum[i], 4, 4)) << "wrote beyond the columns";
            }
    }
};

class GemmF32 : public UkernelTest<Gemm> {
  protected:
    Random random{16};

    void multiply(size_t m, size_t r, size_t c, bool wild) {
        SCOPED_TRACE(testing::Message() << "m " << m << ", r " << r << ", c " << c);
        const Sums sums(random, wild, m, c);
        const size_t x_stride = r + random.below(3);
        const Array<float> x((round_up(m, 16) - 1) * x_stride + r);
        const Array<float> panel(r ? (r - 1) * sums.stride + sums.padded : 0);
        for (size_t i = 0; i < x.size(); i++)
            x[i] = i < m * x_stride ? sample(random, wild) : NAN;
        for (size_t i = 0; i < panel.size(); i++)
            panel[i] = i % sums.stride < c ? sample(random, wild) : NAN;
        sums.add_product(GetParam().run, m, r, x.data(), x_stride, panel.data());
        for (size_t row = 0; row < m; row++)
            for (size_t column = 0; column < c; column++) {
                float product = 0;
                double exact = 0, size = 0;
                for (size_t i = 0; i < r; i++) {
                    const float a = x[row * x_stride + i], b = panel[i * sums.stride + column];
                    product = std::fma(a, b, product);
                    exact += (double)a * b;
                    size += std::fabs((double)a * b);
                }
                const float want = sums.at_start(row, column) + product;
                const float have = sums(row, column);
                ASSERT_TRUE(same_bits(&want, &have, 4, 4, true))
                    << "row " << row << ", column " << column;
                if (!wild) {
                    ASSERT_LE(std::fabs(have - exact - sums.at_start(row, column)),
                              (double)(r + 1) * epsilon *
                                  (size + std::fabs(sums.at_start(row, column))));
                }
            }
    }
};

TEST_P(GemmF32, EqualsTheSpecification) {
    for (size_t m = 1; m <= GetParam().mr; m++)
        for (size_t r : {0, 1, 2, 31, 64})
            for (size_t c : {size_t(1), size_t(64), size_t(65), 1 + random.below(200)})
                for (bool wild : {false, true}) {
                    multiply(m, r, c, wild);
                    if (HasFailure())
                        return;
                }
    multiply(GetParam().mr, 256, 130, false);
}

INSTANTIATE_TEST_SUITE_P(, GemmF32, testing::ValuesIn(dense_rows().gemm[f32]), VariantName());

class GemmBf16 : public UkernelTest<Gemm> {
  protected:
    Random random{11};

    void multiply(size_t m, size_t r, size_t c) {
        SCOPED_TRACE(testing::Message() << "m " << m << ", r " << r << ", c " << c);
        const Sums sums(random, false, m, c);
        const size_t x_stride = r + random.below(3);
        const Array<uint16_t> x((round_up(m, 16) - 1) * x_stride + r);
        const Array<uint32_t> panel((r / 2 - 1) * sums.stride + sums.padded);
        for (size_t i = 0; i < x.size(); i++)
            x[i] = i < m * x_stride ? to_bf16(random.uniform(-4, 4)) : 0x7fc0;
        for (size_t i = 0; i < panel.size(); i++)
            panel[i] = i % sums.stride >= c ? 0x7fc07fc0
                                            : (uint32_t)to_bf16(random.uniform(-4, 4)) << 16 |
                                                  to_bf16(random.uniform(-4, 4));
        sums.add_product(GetParam().run, m, r, x.data(), x_stride, panel.data());
        for (size_t row = 0; row < m; row++)
            for (size_t column = 0; column < c; column++) {
                double exact = sums.at_start(row, column), size = std::fabs(exact);
                for (size_t i = 0; i < r; i++) {
                    const uint32_t pair = panel[i / 2 * sums.stride + column];
                    const double product = (double)from_bf16(x[row * x_stride + i]) *
                                           from_bf16((uint16_t)(pair >> i % 2 * 16));
                    exact += product;
                    size += std::fabs(product);
                }
                ASSERT_LE(std::fabs(sums(row, column) - exact), (double)(r + 2) * 0x1p-24 * size)
                    << "row " << row << ", column " << column;
            }
    }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GemmBf16);

TEST_P(GemmBf16, IsWithinRounding) {
    for (size_t m = 1; m <= GetParam().mr; m++)
        for (size_t r : {32, 64, 160})
            for (size_t c : {size_t(1), size_t(64), 1 + random.below(200)}) {
                multiply(m, r, c);
                if (HasFailure())
                    return;
            }
    multiply(GetParam().mr, 1024, 130);
}

INSTANTIATE_TEST_SUITE_P(, GemmBf16, testing::ValuesIn(dense_rows().gemm[bf16]), VariantName());

// ---------------------------------------------------------------------------------------------

using Tiles = Variant<decltype(lowbit_dense_tiles__amx)>;

std::vector<Tiles> tiles() {
    std::vector<Tiles> variants;
    add_variants(variants, "tiles__amx", LOWBIT_ISA_AMX, lowbit_dense_tiles__amx,
                 LOWBIT_EMULATED_amx(lowbit_dense_tiles__amx));
    return variants;
}

class TilesTest : public UkernelTest<Tiles> {};

TEST_P(TilesTest, FollowsTheLayout) {
    Random random(8);
    for (size_t m = 1; m <= 16; m++)
        for (size_t bytes : {0, 64, 128, 192, 1024}) {
            const size_t stride = bytes + 64 * random.below(3);
            const Array<uint8_t> x((m - 1) * stride + bytes), have(16 * bytes), want(16 * bytes);
            for (size_t i = 0; i < x.size(); i++)
                x[i] = (uint8_t)random.bits();
            for (size_t i = 0; i < 16; i++)
                for (size_t b = 0; b < bytes; b++)
                    want[b / 64 * 1024 + b % 64 / 4 * 64 + i * 4 + b % 4] =
                        i < m ? x[i * stride + b] : (uint8_t)0;
            GetParam().run(m, bytes, x.data(), stride, have.data());
            ASSERT_TRUE(same_bits(want, have)) << "m " << m << ", bytes " << bytes;
        }
}

INSTANTIATE_TEST_SUITE_P(, TilesTest, testing::ValuesIn(tiles()), VariantName());

} // namespace
