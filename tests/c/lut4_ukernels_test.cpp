// SPDX-License-Identifier: MIT
// The micro-kernels of the lut4 family: quantize and dequantize equal the reference in bits, and
// products are exact where floats are, and within rounding of float64 where they are not.

#include "elementwise_testing.h"
#include "lut4_testing.h"

#include "../../kernels/cpu/lut4/ukernels.h"

namespace {

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA)                                                       \
    LOWBIT_DECLARE_##isa(lowbit_lut4_quantize_ukernel, lowbit_lut4_quantize_ukernel_##type##__##isa)
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA)                                                     \
    LOWBIT_DECLARE_##isa(lowbit_lut4_dequantize_ukernel,                                           \
                         lowbit_lut4_dequantize_ukernel_##type##__##isa)
#include "../../kernels/cpu/lut4/elementwise.inc"
#define LOWBIT_LUT4_ARRANGE(from, to, isa)                                                         \
    LOWBIT_DECLARE_##isa(lowbit_lut4_arrange_ukernel,                                              \
                         lowbit_lut4_arrange_ukernel_##from##_##to##__##isa)
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, blocksize, arrange, x_layout,       \
                         unless)                                                                   \
    LOWBIT_DECLARE_##isa(lowbit_lut4_gemm_ukernel,                                                 \
                         lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa)
#include "../../kernels/cpu/lut4/gemm.inc"
}
#endif

struct Gemm : Variant<lowbit_lut4_gemm_ukernel> {
    lowbit_float type;
    size_t mr, nr, least_blocksize;
    lowbit_lut4_arrange_ukernel *arrange[3]; // by x's type; null where it takes another
    lowbit_lut4_x_layout x_layout;
};

// The arrange functions for a gemm of a type, and their emulated copies.
#define LOWBIT_ARRANGE(form, from, to, isa)                                                        \
    form##_##isa(lowbit_lut4_arrange_ukernel_##from##_##to##__##isa)
#define LOWBIT_NATIVE_scalar(function) function
#define LOWBIT_NATIVE_avx2(function) function
#define LOWBIT_NATIVE_avx512vnni(function) function
#define LOWBIT_NATIVE_avx512bf16(function) function
#define LOWBIT_NATIVE_amx(function) function
#define LOWBIT_ARRANGE_f32(form, isa)                                                              \
    {LOWBIT_ARRANGE(form, f32, f32, isa), LOWBIT_ARRANGE(form, f16, f32, isa),                     \
     LOWBIT_ARRANGE(form, bf16, f32, isa)}
#define LOWBIT_ARRANGE_bf16(form, isa) {nullptr, nullptr, LOWBIT_ARRANGE(form, bf16, bf16, isa)}

struct Rows {
    std::vector<Variant<lowbit_lut4_quantize_ukernel>> quantize;
    std::vector<Variant<lowbit_lut4_dequantize_ukernel>> dequantize;
    std::vector<Gemm> gemm;

    Rows() {
#define LOWBIT_ADD_LUT4(signature, type, isa, ISA)                                                 \
    add_variants(signature, #type "__" #isa, ISA,                                                  \
                 lowbit_lut4_##signature##_ukernel_##type##__##isa,                                \
                 LOWBIT_EMULATED_##isa(lowbit_lut4_##signature##_ukernel_##type##__##isa));
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA) LOWBIT_ADD_LUT4(quantize, type, isa, ISA)
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA) LOWBIT_ADD_LUT4(dequantize, type, isa, ISA)
#include "../../kernels/cpu/lut4/elementwise.inc"
        const auto add_gemm = [&](Gemm native, lowbit_lut4_gemm_ukernel *emulated,
                                  std::initializer_list<lowbit_lut4_arrange_ukernel *> arrange) {
            std::vector<Variant<lowbit_lut4_gemm_ukernel>> variants;
            add_variants(variants, native.name.c_str(), native.needs, native.run, emulated);
            for (const auto &variant : variants) {
                Gemm row = native;
                static_cast<Variant<lowbit_lut4_gemm_ukernel> &>(row) = variant;
                if (variant.emulated)
                    std::copy(arrange.begin(), arrange.end(), row.arrange);
                gemm.push_back(row);
            }
        };
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, blocksize, arrange, x_layout,       \
                         unless)                                                                   \
    add_gemm({{#type "_" #mr "x" #nr "__" #isa, ISA,                                               \
               lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa, false},                     \
              type,                                                                                \
              mr,                                                                                  \
              nr,                                                                                  \
              blocksize,                                                                           \
              LOWBIT_ARRANGE_##type(LOWBIT_NATIVE, arrange),                                       \
              LOWBIT_LUT4_##x_layout},                                                             \
             LOWBIT_EMULATED_##isa(lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa),        \
             LOWBIT_ARRANGE_##type(LOWBIT_EMULATED, arrange));
#include "../../kernels/cpu/lut4/gemm.inc"
    }
};

const Rows &lut4_rows() {
    static const Rows rows;
    return rows;
}

const int all_blocksizes[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};

lowbit_tensor row_view(void *data, lowbit_dtype dtype, size_t size) {
    return {data, dtype, 1, size, size};
}

// ---------------------------------------------------------------------------------------------

lowbit_lut4_levels levels_of(const Tensor &codebook) {
    std::vector<std::pair<float, uint8_t>> sorted;
    for (uint8_t code = 0; code < 16; code++)
        sorted.push_back({codebook.get(code, 0), code});
    std::sort(sorted.begin(), sorted.end());
    lowbit_lut4_levels levels;
    for (size_t i = 0; i < 16; i++) {
        const bool same = i > 0 && sorted[i].first == sorted[i - 1].first;
        levels.code[i] = same ? levels.code[i - 1] : sorted[i].second;
        if (i < 15)
            levels.midpoint[i] = 0.5f * sorted[i].first + 0.5f * sorted[i + 1].first;
    }
    return levels;
}

class Lut4Quantize : public UkernelTest<Variant<lowbit_lut4_quantize_ukernel>> {
  protected:
    const lowbit_float type = type_of(GetParam().name);

    void expect_equals_reference(const Floats &x, const Tensor &codebook,
                                 GuardedBuffer::Side side) {
        const size_t n = x.size();
        const Array<uint8_t> want((n + 1) / 2, side), have(want.size(), side);
        const Array<float> absmax(1);
        const Array<lowbit_lut4_levels> levels(1, side);
        levels[0] = levels_of(codebook);
        const lowbit_tensor weight = row_view(x.data(), (lowbit_dtype)type, n),
                            packed = row_view(want.data(), LOWBIT_UINT8, want.size()),
                            scale = row_view(absmax.data(), LOWBIT_FLOAT32, 1);
        reference_lut4_quantize(&weight, codebook, 4096, &packed, &scale);
        const float result = GetParam().run(n, x.data(), levels.data(), have.data());
        ASSERT_TRUE(same_bits(absmax.data(), &result, 4, 4)) << "absmax, n " << n;
        ASSERT_TRUE(same_bits(want, have)) << "n " << n;
    }
};

TEST_P(Lut4Quantize, EqualsReference) {
    Random random(300);
    int kind = 0;
    for (size_t n : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                if (n == 0 || n > 4096)
                    continue;
                kind = (kind + 1) % all_codebook16_kinds;
                SCOPED_TRACE(codebook16_name(kind));
                const Tensor codebook = codebook16(kind, random);
                Floats x(type, n, side);
                fill(x, random, wild);
                expect_equals_reference(x, codebook, side);
                if (HasFailure())
                    return;
            }
}

// Every midpoint, and the numbers next to it, in every place of a vector.
TEST_P(Lut4Quantize, FindsEveryMidpoint) {
    Random random(301);
    for (int kind = 0; kind < all_codebook16_kinds; kind++) {
        SCOPED_TRACE(codebook16_name(kind));
        const Tensor codebook = codebook16(kind, random);
        const lowbit_lut4_levels levels = levels_of(codebook);
        for (size_t shift = 0; shift < 16; shift++)
            for (float scale : {1.0f, 0x1p-60f, 0x1p60f}) {
                std::vector<float> near(shift, 0.0f);
                near.push_back(1);
                for (float midpoint : levels.midpoint)
                    for (float v : {std::nextafter(midpoint, -INFINITY), midpoint,
                                    std::nextafter(midpoint, INFINITY), -midpoint})
                        near.push_back(std::fabs(v) < 1 ? v : 0.5f);
                Floats x(type, near.size());
                for (size_t i = 0; i < near.size(); i++)
                    x.set(i, near[i] * (type == f16 ? 1 : scale));
                expect_equals_reference(x, codebook, GuardedBuffer::at_end);
            }
        if (HasFailure())
            return;
    }
}

// absmax of every size: subnormal, so small that its inverse overflows, so large that it is subnormal.
TEST_P(Lut4Quantize, EveryExponent) {
    Random random(302);
    for (int exponent = -149; exponent <= 127; exponent++) {
        const Tensor codebook = codebook16(exponent & 1 ? nf4 : unsorted16, random);
        Floats x(type, 33);
        for (size_t i = 0; i < 33; i++)
            x.set(i, std::ldexp(random.uniform(-2, 2), exponent));
        expect_equals_reference(x, codebook, GuardedBuffer::at_end);
        if (HasFailure())
            return;
    }
}

TEST_P(Lut4Quantize, NothingFinite) {
    Random random(303);
    for (float value : {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f})
        for (size_t n : {1, 2, 7, 16, 17, 64}) {
            Floats x(type, n);
            for (size_t i = 0; i < n; i++)
                x.set(i, value);
            expect_equals_reference(x, codebook16(fp4, random), GuardedBuffer::at_end);
        }
}

INSTANTIATE_TEST_SUITE_P(, Lut4Quantize, testing::ValuesIn(lut4_rows().quantize), VariantName());

// ---------------------------------------------------------------------------------------------

class Lut4Dequantize : public UkernelTest<Variant<lowbit_lut4_dequantize_ukernel>> {
  protected:
    const lowbit_float type = type_of(GetParam().name);
    Random random{304};

    // n elements from begin on, of a weight that goes on for `more`.
    void check(size_t begin, size_t n, size_t more, size_t blocksize, GuardedBuffer::Side side,
               bool wild) {
        const Array<uint8_t> packed((begin + n + more + 1) / 2, side);
        const Array<float> codebook(16, side), want_s((begin + n) / blocksize + 1, side);
        for (size_t i = 0; i < packed.size(); i++)
            packed[i] = (uint8_t)random.bits();
        fill(codebook, random, wild);
        fill(want_s, random, wild);
        // Only the scales that the run needs.
        const size_t first = begin / blocksize, last = n ? (begin + n - 1) / blocksize + 1 : first;
        const Array<float> s(last - first, side);
        std::copy(want_s.data() + first, want_s.data() + last, s.data());
        const Floats want(type, n, side), have(type, n, side);
        for (size_t i = 0; i < n; i++) {
            const uint8_t byte = packed[(begin + i) / 2];
            const lowbit_tensor to = row_view(want.data(), (lowbit_dtype)type, n);
            reference_set(&to, 0, i,
                          codebook[(begin + i) % 2 ? byte & 15 : byte >> 4] *
                              want_s[(begin + i) / blocksize]);
        }
        const lowbit_lut4_run run = {packed.data(), begin, n, codebook.data(), s.data(), blocksize};
        GetParam().run(&run, have.data());
        ASSERT_TRUE(
            same_bits(want.data(), have.data(), have.bytes().bytes(), lowbit_float_size(type)))
            << "from " << begin << ", n " << n << ", blocks of " << blocksize;
    }
};

TEST_P(Lut4Dequantize, EqualsReference) {
    for (size_t n : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                const auto blocksize = (size_t)random.pick(all_blocksizes);
                check(random.below(2 * blocksize), n, random.one_in(2) ? random.below(70) : 0,
                      blocksize, side, wild);
                if (HasFailure())
                    return;
            }
}

// Every place in a block where a run may begin and end.
TEST_P(Lut4Dequantize, EveryBeginAndEnd) {
    for (size_t begin = 0; begin < 40; begin++)
        for (size_t n = 0; n <= 70 && !HasFailure(); n++)
            check(begin, n, 0, 32, GuardedBuffer::at_end, false);
}

INSTANTIATE_TEST_SUITE_P(, Lut4Dequantize, testing::ValuesIn(lut4_rows().dequantize),
                         VariantName());

// ---------------------------------------------------------------------------------------------

class Lut4Gemm : public UkernelTest<Gemm> {
  protected:
    Random random{305};

    struct Product {
        size_t m, n, k, blocksize;
        std::vector<Floats> x; // rows
        size_t x_stride, s_stride, acc_stride;
        Array<unsigned char> arranged;
        Array<uint8_t> packed;
        Array<float> codebook, s, acc;
    };

    // Rows of arranged x that lie in one piece.
    static size_t rows_together() {
        return GetParam().x_layout == LOWBIT_LUT4_TILES ? LOWBIT_LUT4_UNIT_M : 1;
    }

    static size_t round_up(size_t value, size_t multiple) {
        return (value + multiple - 1) / multiple * multiple;
    }

    // exact: of numbers so small and whole that no order of their sums rounds.
    Product product(size_t m, size_t n, size_t k, size_t blocksize, lowbit_float x_type,
                    bool exact) {
        const Gemm &row = GetParam();
        const GuardedBuffer::Side side = random.pick(sides);
        const size_t width = round_up(k, LOWBIT_LUT4_X_ALIGN) * lowbit_float_size(row.type);
        const size_t together = rows_together(), units = (m + together - 1) / together;
        const size_t x_stride = together * width + 64 * random.below(3), blocks = k / blocksize;
        const size_t s_stride = blocks + random.below(3), acc_stride = n + random.below(3);
        Product p{m,
                  n,
                  k,
                  blocksize,
                  {},
                  x_stride,
                  s_stride,
                  acc_stride,
                  Array<unsigned char>((units - 1) * x_stride + together * width, side),
                  Array<uint8_t>(n * (k / 2), side),
                  Array<float>(16, side),
                  Array<float>((n - 1) * s_stride + blocks, side),
                  Array<float>((m - 1) * acc_stride + n, side)};
        for (size_t i = 0; i < m; i++) {
            p.x.emplace_back(x_type, k, side);
            for (size_t j = 0; j < k; j++)
                p.x[i].set(j, exact ? (float)random.below(17) - 8 : random.uniform(-4, 4));
        }
        for (size_t i = 0; i < p.packed.size(); i++)
            p.packed[i] = (uint8_t)random.bits();
        const size_t turn = random.below(16);
        for (size_t i = 0; i < 16; i++)
            p.codebook[(i + turn) % 16] = exact ? (float)i - 7 : random.uniform(-1, 1);
        for (size_t i = 0; i < p.s.size(); i++)
            p.s[i] = exact ? std::ldexp(1.0f, (int)random.below(5) - 2) : random.uniform(-1, 1);
        return p;
    }

    void run(const Product &p) {
        const size_t width =
            round_up(p.k, LOWBIT_LUT4_X_ALIGN) * lowbit_float_size(GetParam().type);
        if (rows_together() > 1)
            std::memset(p.arranged.data(), 0, p.arranged.bytes());
        for (size_t i = 0; i < p.m; i++) {
            const Array<unsigned char> row(width);
            std::memset(row.data(), 0x7f, width);
            GetParam().arrange[x_type(p)](p.k, p.x[i].data(), row.data());
            unsigned char *to = p.arranged.data() + i / rows_together() * p.x_stride;
            for (size_t b = 0; b < width; b++)
                to[rows_together() > 1 ? b / 64 * 1024 + b % 64 / 4 * 64 + i % 16 * 4 + b % 4 : b] =
                    row[b];
        }
        lowbit_lut4_gemm_args args = {};
        args.m = p.m;
        args.n = p.n;
        args.k = p.k;
        args.x = p.arranged.data();
        args.x_stride = p.x_stride;
        args.packed = p.packed.data();
        args.codebook = p.codebook.data();
        args.s = p.s.data();
        args.s_stride = p.s_stride;
        args.blocksize = p.blocksize;
        args.acc = p.acc.data();
        args.acc_stride = p.acc_stride;
        const Array<uint8_t> next(random.below(4 * p.n * p.k + 1));
        if (random.one_in(2)) {
            args.prefetch = next.data();
            args.prefetch_size = next.size();
        }
        GetParam().run(&args);
        for (size_t i = 0; i < p.acc.size(); i++)
            if (i % p.acc_stride >= p.n) {
                const uint32_t untouched = 0xa5a5a5a5;
                ASSERT_TRUE(same_bits(&untouched, &p.acc[i], 4, 4)) << "wrote beyond the columns";
            }
    }

    static lowbit_float x_type(const Product &p) { return p.x[0].type(); }

    void expect_product(const Product &p, bool exact) {
        for (size_t row = 0; row < p.m; row++)
            for (size_t n = 0; n < p.n; n++) {
                double sum = 0, magnitude = 0;
                for (size_t k = 0; k < p.k; k++) {
                    const uint8_t byte = p.packed[(n * p.k + k) / 2];
                    const float w = p.codebook[k % 2 ? byte & 15 : byte >> 4] *
                                    p.s[n * p.s_stride + k / p.blocksize];
                    const double product = (double)p.x[row].get(k) *
                                           (GetParam().type == bf16 ? from_bf16(to_bf16(w)) : w);
                    sum += product;
                    magnitude += std::fabs(product);
                }
                const float have = p.acc[row * p.acc_stride + n];
                if (exact) {
                    ASSERT_EQ(have, (float)sum) << "row " << row << ", column " << n;
                } else { // a rounding for each k, and those of w, of its product, of the last sums
                    ASSERT_LE(std::fabs(have - sum), (double)(p.k + 16) * 0x1p-24 * magnitude)
                        << "row " << row << ", column " << n;
                }
            }
    }

    void check(size_t m, size_t n, size_t k, size_t blocksize) {
        for (lowbit_float x_type : {f32, f16, bf16})
            for (bool exact : {false, true}) {
                if (!GetParam().arrange[x_type] || HasFailure())
                    continue;
                SCOPED_TRACE(testing::Message()
                             << "m " << m << ", n " << n << ", k " << k << ", blocks of "
                             << blocksize << ", x of type " << x_type << ", exact " << exact);
                const Product p = product(m, n, k, blocksize, x_type, exact);
                run(p);
                if (!HasFailure())
                    expect_product(p, exact);
            }
    }
};

// Few columns of every number of rows.
TEST_P(Lut4Gemm, EveryTile) {
    for (size_t m = 1; m <= GetParam().mr; m++)
        for (size_t n = 1; n <= GetParam().nr; n++) {
            const size_t blocksize = GetParam().least_blocksize << random.below(2);
            check(m, n, blocksize * (1 + random.below(3)), blocksize);
            if (HasFailure())
                return;
        }
}

// Odd numbers of blocks of every size; k beyond what is taken at once.
TEST_P(Lut4Gemm, EveryBlocksize) {
    for (int blocksize : all_blocksizes)
        if ((size_t)blocksize >= GetParam().least_blocksize)
            for (size_t blocks : {1, 2, 3, 4, 5, 7})
                for (size_t m : {size_t(1), 1 + random.below(GetParam().mr), GetParam().mr})
                    if (!HasFailure() && (blocks <= 3 || blocksize <= 512))
                        check(m, 1 + random.below(3), blocks * (size_t)blocksize,
                              (size_t)blocksize);
    for (size_t m = 1; m <= GetParam().mr && !HasFailure(); m++)
        check(m, 3, 8192 + 3 * GetParam().least_blocksize, GetParam().least_blocksize);
}

TEST_P(Lut4Gemm, NoColumns) {
    check(1, 1, 0, 64);
    check(GetParam().mr, GetParam().nr, 0, 64);
}

// What a row of x holds reaches no other row.
TEST_P(Lut4Gemm, RowsDoNotDependOnEachOther) {
    for (size_t m = 2; m <= GetParam().mr; m++)
        for (lowbit_float x_type : {f32, f16, bf16})
            for (float value : {NAN, INFINITY}) {
                if (!GetParam().arrange[x_type])
                    continue;
                Product p = product(m, 5, 320, 64, x_type, false);
                run(p);
                const std::vector<float> before(p.acc.data(), p.acc.data() + p.acc.size());
                const size_t bad = random.below(m);
                for (size_t k = 0; k < p.k; k++)
                    p.x[bad].set(k, value);
                run(p);
                for (size_t row = 0; row < m; row++)
                    for (size_t n = 0; n < p.n; n++) {
                        const size_t i = row * p.acc_stride + n;
                        if (row == bad) {
                            ASSERT_FALSE(std::isfinite(p.acc[i])) << "row " << row;
                        } else {
                            ASSERT_TRUE(same_bits(&before[i], &p.acc[i], 4, 4)) << "row " << row;
                        }
                    }
            }
}

// The same elements of x in the same places, from whichever type they come.
TEST_P(Lut4Gemm, ArrangementsOfEveryTypeAgree) {
    const Gemm &row = GetParam();
    const size_t size = lowbit_float_size(row.type);
    for (size_t k : lengths()) {
        const size_t bytes = round_up(k, LOWBIT_LUT4_X_ALIGN) * size;
        std::optional<Array<unsigned char>> first;
        for (lowbit_float x_type : {f32, f16, bf16}) {
            if (!row.arrange[x_type])
                continue;
            Floats x(x_type, k);
            for (size_t i = 0; i < k; i++) // the same in all types
                x.set(i, std::ldexp((float)(i % 127 + 1), (int)(i / 127 % 8) - 4));
            Array<unsigned char> have(bytes);
            row.arrange[x_type](k, x.data(), have.data());
            Floats sorted(row.type, bytes / size);
            std::memcpy(sorted.data(), have.data(), bytes);
            std::vector<float> want(bytes / size, 0.0f), got;
            for (size_t i = 0; i < bytes / size; i++) {
                want[i] = i < k ? x.get(i) : 0;
                got.push_back(sorted.get(i));
            }
            for (size_t u = 0; u < want.size(); u += LOWBIT_LUT4_X_ALIGN)
                for (auto *values : {&want, &got})
                    std::sort(values->begin() + (ptrdiff_t)u,
                              values->begin() + (ptrdiff_t)(u + LOWBIT_LUT4_X_ALIGN));
            ASSERT_EQ(want, got) << "k " << k;
            if (first) {
                ASSERT_TRUE(same_bits(*first, have)) << "k " << k << ", type " << x_type;
            } else {
                first.emplace(std::move(have));
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, Lut4Gemm, testing::ValuesIn(lut4_rows().gemm), VariantName());

} // namespace
