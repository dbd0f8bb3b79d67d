// SPDX-License-Identifier: MIT
// Every row of kernels/cpu/int8/gemm.inc, with its pack, equals plain loops over int64.

#include "ukernel_testing.h"

namespace {

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_PACK(isa)                                                                           \
    LOWBIT_DECLARE_##isa(lowbit_int8_pack_ukernel, lowbit_int8_pack_ukernel__##isa)
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    LOWBIT_DECLARE_##isa(lowbit_int8_gemm_ukernel, lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa)
#include "../../kernels/cpu/int8/gemm.inc"
}
#endif

struct Gemm : Variant<lowbit_int8_gemm_ukernel> {
    size_t mr, nr;
    lowbit_int8_x_layout x_layout;
    lowbit_int8_pack_ukernel *pack;
    bool full_range;
};

#define lowbit_int8_pack_ukernel__none nullptr
#define LOWBIT_EMULATED_none(function) nullptr

std::vector<Gemm> gemms() {
    std::vector<Gemm> gemms;
    const auto add = [&](const char *name, uint32_t isa, lowbit_int8_gemm_ukernel *native,
                         lowbit_int8_gemm_ukernel *emulated, size_t mr, size_t nr,
                         lowbit_int8_x_layout x_layout, lowbit_int8_pack_ukernel *pack,
                         lowbit_int8_pack_ukernel *emulated_pack, bool full_range) {
        std::vector<Variant<lowbit_int8_gemm_ukernel>> variants;
        add_variants(variants, name, isa, native, emulated);
        for (const auto &variant : variants)
            gemms.push_back(
                {variant, mr, nr, x_layout, variant.emulated ? emulated_pack : pack, full_range});
    };
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    add(#mr "x" #nr "__" #isa, ISA, lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa,                 \
        LOWBIT_EMULATED_##isa(lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa), mr, nr,              \
        LOWBIT_INT8_##x_layout, lowbit_int8_pack_ukernel__##pack,                                  \
        LOWBIT_EMULATED_##pack(lowbit_int8_pack_ukernel__##pack), full_range);
#include "../../kernels/cpu/int8/gemm.inc"
    return gemms;
}

enum Codes { any, all_lowest, lowest_by_highest, alternating };

size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Rows of x, m x k codes, as the gemm wants them; x_stride is set.
Array<int8_t> lay_out(const Gemm &gemm, const std::vector<int8_t> &codes, size_t m, size_t k,
                      Random &random, size_t *x_stride) {
    const size_t padded = round_up(k, 64);
    const bool tiles = gemm.x_layout == LOWBIT_INT8_TILES;
    *x_stride = padded * (tiles ? 16 : 1) + 64 * random.below(3);
    Array<int8_t> x(((tiles ? (m + 15) / 16 : m) - 1) * *x_stride + padded * (tiles ? 16 : 1));
    std::memset(x.data(), 0, x.bytes());
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < k; j++)
            x[tiles ? i / 16 * *x_stride + j / 64 * 1024 + j % 64 / 4 * 64 + i % 16 * 4 + j % 4
                    : i * *x_stride + j] = codes[i * k + j];
    return x;
}

class GemmTest : public UkernelTest<Gemm> {
  protected:
    Random random{7};

    void multiply(size_t m, size_t n, size_t k, Codes kind = any) {
        SCOPED_TRACE(testing::Message()
                     << "m " << m << ", n " << n << ", k " << k << ", codes " << kind);
        const Gemm &gemm = GetParam();
        const int8_t low = gemm.full_range ? -128 : -127; // of x; the weight may hold -128 anyway
        const GuardedBuffer::Side side =
            random.one_in(2) ? GuardedBuffer::at_end : GuardedBuffer::at_start;
        const size_t w_stride = k + random.below(4);
        const Array<int8_t> w((n - 1) * w_stride + k, side);
        std::vector<int8_t> codes(m * k);
        for (size_t i = 0; i < w.size(); i++)
            w[i] = kind == any ? (int8_t)random.bits() : kind == alternating && i % 2 ? 127 : -128;
        for (size_t i = 0; i < codes.size(); i++)
            codes[i] = kind == any                 ? std::max((int8_t)random.bits(), low)
                       : kind == lowest_by_highest ? (int8_t)127
                                                   : low;
        const Array<int32_t> xsum(m);
        for (size_t i = 0; i < m; i++) {
            xsum[i] = 0;
            for (size_t j = 0; j < k; j++)
                xsum[i] += codes[i * k + j];
        }
        lowbit_int8_gemm_args args = {};
        const Array<int8_t> x = lay_out(gemm, codes, m, k, random, &args.x_stride);
        const Array<int8_t> panel(gemm.pack ? round_up(n, 16) * round_up(k, 4) : 0);
        const Array<int8_t> next(random.below(4 * n * k + 1));
        args.m = m;
        args.n = n;
        args.k = k;
        args.x = x.data();
        args.xsum = xsum.data();
        args.w = gemm.pack ? panel.data() : w.data();
        args.w_stride = gemm.pack ? 0 : w_stride;
        args.acc_stride = gemm.nr + 16 * random.below(3);
        if (random.one_in(2)) {
            args.prefetch = next.data();
            args.prefetch_size = next.size();
        }
        const Array<int32_t> acc((gemm.mr - 1) * args.acc_stride + gemm.nr);
        const int32_t untouched = acc[0];
        args.acc = acc.data();
        if (gemm.pack)
            gemm.pack(n, k, w.data(), w_stride, panel.data());
        gemm.run(&args);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                int64_t sum = 0;
                for (size_t l = 0; l < k; l++)
                    sum += codes[i * k + l] * w[j * w_stride + l];
                ASSERT_EQ(acc[i * args.acc_stride + j], (int32_t)sum)
                    << "row " << i << ", column " << j;
            }
        for (size_t i = 0; i + args.acc_stride <= acc.size(); i += args.acc_stride)
            for (size_t j = gemm.nr; j < args.acc_stride; j++)
                ASSERT_EQ(acc[i + j], untouched) << "wrote beyond the tile";
    }
};

TEST_P(GemmTest, EveryDepth) {
    const Gemm &gemm = GetParam();
    for (size_t k : lengths()) {
        multiply(1, 1, k);
        multiply(gemm.mr, gemm.nr, k);
        multiply(1 + random.below(gemm.mr), 1 + random.below(gemm.nr), k);
        if (HasFailure())
            return;
    }
}

TEST_P(GemmTest, EveryTile) {
    const Gemm &gemm = GetParam();
    for (size_t m = 1; m <= gemm.mr; m++)
        for (size_t n = 1; n <= gemm.nr; n++) {
            multiply(m, n, 1 + random.below(130));
            if (HasFailure())
                return;
        }
}

TEST_P(GemmTest, ExtremeCodes) {
    const Gemm &gemm = GetParam();
    // The largest K that the operators allow: sums just within int32.
    const size_t deepest = gemm.full_range ? LOWBIT_INT8_MATMUL_MAX_K : 131000;
    for (Codes kind : {all_lowest, lowest_by_highest, alternating})
        for (size_t k : {size_t(1), size_t(100), size_t(1024), deepest}) {
            multiply(std::min<size_t>(gemm.mr, 2), 3, k, kind);
            if (HasFailure())
                return;
        }
}

INSTANTIATE_TEST_SUITE_P(, GemmTest, testing::ValuesIn(gemms()), VariantName());

} // namespace
