// SPDX-License-Identifier: MIT
// The tables of micro-kernels and the choice among their rows, for every machine there is.

#include "../../ops/adam8bit_dispatch.h"
#include "../../ops/blockwise_dispatch.h"
#include "../../ops/dense_dispatch.h"
#include "../../ops/int8_dispatch.h"
#include "../../ops/lut4_dispatch.h"

#include "lowbit/cpu.h"

#include "../../kernels/cpu/common/floats.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace {

const bool full_ranges[] = {false, true};

// Every set of instruction sets that has the scalar one, also those that no machine has.
std::vector<uint32_t> masks() {
    uint32_t all = 0;
    for (uint32_t bit = 1; lowbit_cpu_isa_name(bit); bit <<= 1)
        all |= bit;
    std::vector<uint32_t> masks;
    for (uint32_t mask = LOWBIT_ISA_SCALAR; mask <= all; mask++)
        if (mask & LOWBIT_ISA_SCALAR)
            masks.push_back(mask);
    return masks;
}

struct Row {
    std::string name, isa_name, pack;
    uint32_t isa;
    size_t mr, nr, m_min, m_max;
    lowbit_int8_x_layout x_layout;
    bool full_range;

    bool serves(uint32_t mask, size_t m, bool needs_full_range) const {
        return isa & mask && m >= m_min && (m_max == 0 || m <= m_max) &&
               (full_range || !needs_full_range);
    }
};

const Row rows[] = {
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    {#mr "x" #nr "__" #isa,  #isa,      #pack, ISA, mr, nr, m_min, m_max,                          \
     LOWBIT_INT8_##x_layout, full_range},
#include "../../kernels/cpu/int8/gemm.inc"
};

const std::set<std::string> packs = {
#define LOWBIT_PACK(isa) #isa,
#include "../../kernels/cpu/int8/gemm.inc"
};

TEST(GemmTable, RowsAgreeWithTheirNames) {
    std::set<std::string> names;
    for (const Row &row : rows) {
        SCOPED_TRACE(row.name);
        EXPECT_TRUE(names.insert(row.name).second) << "two rows of one name";
        ASSERT_NE(lowbit_cpu_isa_name(row.isa), nullptr);
        const std::string tile = std::to_string(row.mr) + "x" + std::to_string(row.nr);
        EXPECT_EQ(row.name, tile + "__" + lowbit_cpu_isa_name(row.isa));
        EXPECT_EQ(row.isa_name, lowbit_cpu_isa_name(row.isa));
        EXPECT_TRUE(row.pack == "none" || packs.count(row.pack)) << row.pack;
        EXPECT_LE(row.mr, (size_t)LOWBIT_INT8_TILE_M);
        EXPECT_LE(row.nr, (size_t)LOWBIT_INT8_TILE_N);
        EXPECT_EQ(row.nr % 16, 0u) << "acc is laid out in vectors of 16";
        EXPECT_TRUE(row.x_layout == LOWBIT_INT8_ROWS || row.mr % 16 == 0) << "tiles have 16 rows";
        EXPECT_TRUE(row.m_max == 0 || row.m_min <= row.m_max);
    }
}

TEST(ElementwiseTable, EverySignatureHasEveryTypeInPlainC) {
    std::set<std::string> names;
#define LOWBIT_NAME(signature, type, isa, ISA)                                                     \
    EXPECT_TRUE(names.insert(#signature "_" #type "__" #isa).second) << "two rows of one name";    \
    EXPECT_STREQ(#isa, lowbit_cpu_isa_name(ISA));
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_NAME(range, type, isa, ISA)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_NAME(codes, type, isa, ISA)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_NAME(dequantize, type, isa, ISA)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_NAME(epilogue, type, isa, ISA)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_NAME(panel, type, isa, ISA)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_NAME(fma, type, isa, ISA)
#define LOWBIT_PAIRS(type, isa, ISA) LOWBIT_NAME(pairs, type, isa, ISA)
#define LOWBIT_SCALE(type, isa, ISA) LOWBIT_NAME(scale, type, isa, ISA)
#include "../../kernels/cpu/int8/elementwise.inc"
    for (const char *signature : {"range", "codes", "dequantize", "epilogue"})
        for (const char *type : {"f32", "f16", "bf16"})
            EXPECT_TRUE(names.count(std::string(signature) + "_" + type + "__scalar"))
                << signature << " " << type;
    EXPECT_TRUE(names.count("panel_f32__scalar"));
    EXPECT_TRUE(names.count("fma_f32__scalar"));
}

TEST(BlockwiseTable, EverySignatureHasEveryTypeInPlainC) {
    std::set<std::string> names;
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA) LOWBIT_NAME(quantize, type, isa, ISA)
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA) LOWBIT_NAME(dequantize, type, isa, ISA)
#include "../../kernels/cpu/blockwise/blockwise.inc"
    for (const char *signature : {"quantize", "dequantize"})
        for (const char *type : {"f32", "f16", "bf16"})
            EXPECT_TRUE(names.count(std::string(signature) + "_" + type + "__scalar"))
                << signature << " " << type;
}

TEST(Dispatch, ChoosesTheFirstGemmThatServes) {
    for (uint32_t mask : masks())
        for (bool full_range : full_ranges)
            for (size_t m = 0; m <= 600; m++) {
                const Row *want = rows;
                while (!want->serves(mask, m, full_range)) {
                    want++;
                    ASSERT_NE(want, std::end(rows)) << "no row, mask " << mask << ", m " << m;
                }
                const lowbit_int8_gemm *have = lowbit_int8_select_gemm(mask, m, full_range);
                ASSERT_EQ(have->name, want->name) << "mask " << mask << ", m " << m;
                ASSERT_EQ(have->isa, want->isa);
                ASSERT_EQ(have->mr, want->mr);
                ASSERT_EQ(have->nr, want->nr);
                ASSERT_EQ(have->m_min, want->m_min);
                ASSERT_EQ(have->m_max, want->m_max);
                ASSERT_EQ(have->x_layout, want->x_layout);
                ASSERT_EQ(have->full_range, want->full_range);
                ASSERT_EQ(have->pack != nullptr, want->pack != "none");
                ASSERT_NE(have->run, nullptr);
            }
}

TEST(Dispatch, EveryGemmIsChosenSomewhere) {
    std::set<std::string> chosen;
    for (uint32_t mask : masks())
        for (bool full_range : full_ranges)
            for (size_t m = 0; m <= 600; m++)
                chosen.insert(lowbit_int8_select_gemm(mask, m, full_range)->name);
    for (const Row &row : rows)
        EXPECT_TRUE(chosen.count(row.name)) << row.name << " never runs";
}

TEST(DenseTable, RowsAgreeWithTheirNames) {
    std::set<std::string> names;
#define LOWBIT_NAME_DENSE(row, isa, ISA)                                                           \
    EXPECT_TRUE(names.insert(row).second) << "two rows of one name";                               \
    EXPECT_STREQ(isa, lowbit_cpu_isa_name(ISA));
#define LOWBIT_LOAD(type, isa, ISA) LOWBIT_NAME_DENSE("load_" #type "__" #isa, #isa, ISA)
#define LOWBIT_STORE(type, isa, ISA) LOWBIT_NAME_DENSE("store_" #type "__" #isa, #isa, ISA)
#define LOWBIT_TRANSPOSE(isa, ISA) LOWBIT_NAME_DENSE("transpose__" #isa, #isa, ISA)
#define LOWBIT_INTERLEAVE(isa, ISA) LOWBIT_NAME_DENSE("interleave__" #isa, #isa, ISA)
#include "../../kernels/cpu/dense/elementwise.inc"
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    LOWBIT_NAME_DENSE("gemm_" #type "_" #mr "x" #nr "__" #isa, #isa, ISA)
#include "../../kernels/cpu/dense/gemm.inc"
    for (const char *row : {"load_f32", "load_f16", "load_bf16", "store_f32", "store_f16",
                            "store_bf16", "transpose", "interleave"})
        EXPECT_TRUE(names.count(std::string(row) + "__scalar")) << row;
}

TEST(Dispatch, ChoosesTheFirstDenseGemm) {
    enum { f32 = LOWBIT_FLOAT32, bf16 = LOWBIT_BFLOAT16 };
    const struct {
        const char *name;
        uint32_t isa;
        int type;
        size_t mr, nr;
        lowbit_dense_gemm_ukernel *run;
    } gemms[] = {
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    {#type "_" #mr "x" #nr "__" #isa,                                                              \
     ISA,                                                                                          \
     type,                                                                                         \
     mr,                                                                                           \
     nr,                                                                                           \
     lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa},
#include "../../kernels/cpu/dense/gemm.inc"
        {nullptr, ~0u, bf16, 0, 0, nullptr}, // no row: the product is computed in fp32
    };
    std::set<std::string> chosen;
    for (uint32_t mask : masks())
        for (int type : {f32, bf16}) {
            const auto *want = gemms;
            while (!(want->isa & mask && want->type == type)) {
                want++;
                ASSERT_NE(want, std::end(gemms)) << "no row, mask " << mask << ", type " << type;
            }
            const lowbit_dense_gemm *have = lowbit_dense_select_gemm(mask, (lowbit_dtype)type);
            ASSERT_EQ(have != nullptr, want->name != nullptr) << "mask " << mask;
            if (have) {
                EXPECT_STREQ(have->name, want->name) << "mask " << mask;
                EXPECT_EQ(have->isa, want->isa);
                EXPECT_EQ((int)have->type, want->type);
                EXPECT_EQ(have->mr, want->mr);
                EXPECT_EQ(have->nr, want->nr);
                EXPECT_EQ(have->run, want->run);
                chosen.insert(have->name);
            }
        }
    EXPECT_EQ(chosen.size(), std::size(gemms) - 1) << "a row never runs";
}

// The first row of the table whose instruction set is in mask.
template <typename Function> struct Chosen {
    uint32_t mask;
    Function *function = nullptr;
    void offer(uint32_t isa, Function *candidate) {
        if (!function && isa & mask)
            function = candidate;
    }
};

TEST(Dispatch, ChoosesTheFirstOfTheOtherKernels) {
    for (uint32_t mask : masks()) {
        const lowbit_int8_ukernels have = lowbit_int8_select_ukernels(mask);
        enum { f32, f16, bf16 };
        Chosen<lowbit_int8_range_ukernel> range[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_int8_codes_ukernel> codes[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_int8_dequantize_ukernel> dequantize[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_int8_epilogue_ukernel> epilogue[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_int8_panel_ukernel> panel[] = {{mask}};
        Chosen<lowbit_int8_fma_ukernel> fma[] = {{mask}};
        Chosen<lowbit_int8_pairs_ukernel> pairs[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_int8_scale_ukernel> scale[] = {{mask}, {mask}, {mask}};
#define LOWBIT_OFFER(signature, type, isa, ISA)                                                    \
    signature[type].offer(ISA, lowbit_int8_##signature##_ukernel_##type##__##isa);
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_OFFER(range, type, isa, ISA)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_OFFER(codes, type, isa, ISA)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_OFFER(dequantize, type, isa, ISA)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_OFFER(epilogue, type, isa, ISA)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_OFFER(panel, type, isa, ISA)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_OFFER(fma, type, isa, ISA)
#define LOWBIT_PAIRS(type, isa, ISA) LOWBIT_OFFER(pairs, type, isa, ISA)
#define LOWBIT_SCALE(type, isa, ISA) LOWBIT_OFFER(scale, type, isa, ISA)
#include "../../kernels/cpu/int8/elementwise.inc"
        for (int type = f32; type <= bf16; type++) {
            EXPECT_EQ(have.range[type], range[type].function);
            EXPECT_EQ(have.codes[type], codes[type].function);
            EXPECT_EQ(have.dequantize[type], dequantize[type].function);
            EXPECT_EQ(have.epilogue[type], epilogue[type].function);
        }
        EXPECT_EQ(have.panel, panel[f32].function);
        EXPECT_EQ(have.fma, fma[f32].function);
        EXPECT_EQ(have.pairs, pairs[bf16].function);
        EXPECT_EQ(have.scale, scale[bf16].function);
    }
}

TEST(Dispatch, ChoosesTheFirstOfTheOtherDenseKernels) {
    for (uint32_t mask : masks()) {
        const lowbit_dense_ukernels have = lowbit_dense_select_ukernels(mask);
        enum { f32, f16, bf16 };
        Chosen<lowbit_dense_load_ukernel> load[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_dense_store_ukernel> store[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_dense_transpose_ukernel> transpose = {mask};
        Chosen<lowbit_dense_interleave_ukernel> interleave = {mask};
#define LOWBIT_LOAD(type, isa, ISA)                                                                \
    load[type].offer(ISA, lowbit_dense_load_ukernel_##type##__##isa);
#define LOWBIT_STORE(type, isa, ISA)                                                               \
    store[type].offer(ISA, lowbit_dense_store_ukernel_##type##__##isa);
#define LOWBIT_TRANSPOSE(isa, ISA) transpose.offer(ISA, lowbit_dense_transpose_ukernel__##isa);
#define LOWBIT_INTERLEAVE(isa, ISA) interleave.offer(ISA, lowbit_dense_interleave_ukernel__##isa);
#include "../../kernels/cpu/dense/elementwise.inc"
        for (int type = f32; type <= bf16; type++) {
            EXPECT_EQ(have.load[type], load[type].function);
            EXPECT_EQ(have.store[type], store[type].function);
        }
        EXPECT_EQ(have.transpose, transpose.function);
        EXPECT_EQ(have.interleave, interleave.function);
    }
}

TEST(Dispatch, ChoosesTheFirstOfTheBlockwiseKernels) {
    for (uint32_t mask : masks()) {
        const lowbit_blockwise_ukernels have = lowbit_blockwise_select_ukernels(mask);
        enum { f32, f16, bf16 };
        Chosen<lowbit_blockwise_quantize_ukernel> quantize[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_blockwise_dequantize_ukernel> dequantize[] = {{mask}, {mask}, {mask}};
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA)                                                  \
    quantize[type].offer(ISA, lowbit_blockwise_quantize_ukernel_##type##__##isa);
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA)                                                \
    dequantize[type].offer(ISA, lowbit_blockwise_dequantize_ukernel_##type##__##isa);
#include "../../kernels/cpu/blockwise/blockwise.inc"
        for (int type = f32; type <= bf16; type++) {
            EXPECT_EQ(have.quantize[type], quantize[type].function);
            EXPECT_EQ(have.dequantize[type], dequantize[type].function);
        }
    }
}

TEST(Dispatch, ChoosesTheFirstOfTheAdam8bitKernels) {
    for (uint32_t mask : masks()) {
        const lowbit_adam8bit_ukernels have = lowbit_adam8bit_select_ukernels(mask);
        enum { f32, f16, bf16 };
        for (int param = f32; param <= bf16; param++)
            for (int grad = f32; grad <= bf16; grad++) {
                Chosen<lowbit_adam8bit_ukernel> step = {mask};
#define LOWBIT_ADAM8BIT(row_param, row_grad, isa, ISA)                                             \
    if (row_param == param && row_grad == grad)                                                    \
        step.offer(ISA, lowbit_adam8bit_ukernel_##row_param##_##row_grad##__##isa);
#include "../../kernels/cpu/adam8bit/adam8bit.inc"
                EXPECT_EQ(have.step[param][grad], step.function);
                EXPECT_NE(step.function, nullptr);
            }
    }
}

// ---------------------------------------------------------------------------------------------

struct Lut4Row {
    std::string name, isa_name, arrange;
    uint32_t isa, unless;
    lowbit_float type;
    size_t mr, nr, m_min, m_max, least_blocksize;
    lowbit_lut4_x_layout x_layout;
    lowbit_lut4_gemm_ukernel *run;

    // A gemm of floats takes x of every type, one of bf16 numbers only that.
    bool serves(uint32_t mask, lowbit_float x, size_t m, size_t k, size_t blocksize) const {
        return isa & mask && !(unless & mask) && (type == f32 || x == type) && m >= m_min &&
               m <= m_max && blocksize >= least_blocksize && k % blocksize == 0;
    }
};

const Lut4Row lut4_rows[] = {
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, blocksize, arrange, x_layout,       \
                         unless)                                                                   \
    {#type "_" #mr "x" #nr "__" #isa,                                                              \
     #isa,                                                                                         \
     #arrange,                                                                                     \
     ISA,                                                                                          \
     unless,                                                                                       \
     type,                                                                                         \
     mr,                                                                                           \
     nr,                                                                                           \
     m_min,                                                                                        \
     m_max,                                                                                        \
     blocksize,                                                                                    \
     LOWBIT_LUT4_##x_layout,                                                                       \
     lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa},
#include "../../kernels/cpu/lut4/gemm.inc"
};

TEST(Lut4Table, RowsAgreeWithTheirNames) {
    std::set<std::string> names, arranges;
#define LOWBIT_LUT4_ARRANGE(from, to, isa)                                                         \
    EXPECT_TRUE(arranges.insert(#from "_" #to "__" #isa).second) << "two rows of one name";
#include "../../kernels/cpu/lut4/gemm.inc"
    for (const Lut4Row &row : lut4_rows) {
        SCOPED_TRACE(row.name);
        EXPECT_TRUE(names.insert(row.name).second) << "two rows of one name";
        ASSERT_NE(lowbit_cpu_isa_name(row.isa), nullptr);
        EXPECT_EQ(row.isa_name, lowbit_cpu_isa_name(row.isa));
        EXPECT_TRUE(row.unless == 0 || lowbit_cpu_isa_name(row.unless));
        EXPECT_TRUE(row.x_layout == LOWBIT_LUT4_ROWS || row.mr % LOWBIT_LUT4_UNIT_M == 0);
        EXPECT_TRUE(row.x_layout == LOWBIT_LUT4_ROWS || row.type == bf16) << "tiles hold halves";
        EXPECT_LE(row.m_max, 48u) << "lut4_linear has room for no more sums";
        EXPECT_GE(row.m_min, 1u);
        EXPECT_LE(row.m_min, row.m_max);
        EXPECT_GE(row.least_blocksize, 32u);
        EXPECT_LE(row.least_blocksize, 4096u);
        EXPECT_EQ(row.least_blocksize & (row.least_blocksize - 1), 0u);
        EXPECT_NE(row.type, f16) << "products are those of floats or bf16 numbers";
        for (const char *from : {"f32", "f16", "bf16"})
            EXPECT_TRUE(arranges.count(std::string(from) + "_f32__" + row.arrange) ||
                        (row.type == bf16 && arranges.count("bf16_bf16__" + row.arrange)))
                << "no arrange for " << from;
    }
}

TEST(Lut4Table, EverySignatureHasEveryTypeInPlainC) {
    std::set<std::string> names;
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA) LOWBIT_NAME(quantize, type, isa, ISA)
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA) LOWBIT_NAME(dequantize, type, isa, ISA)
#include "../../kernels/cpu/lut4/elementwise.inc"
    for (const char *signature : {"quantize", "dequantize"})
        for (const char *type : {"f32", "f16", "bf16"})
            EXPECT_TRUE(names.count(std::string(signature) + "_" + type + "__scalar"))
                << signature << " " << type;
}

TEST(Dispatch, ChoosesTheFirstLut4GemmThatServes) {
    std::set<std::string> chosen;
    for (uint32_t mask : masks())
        for (lowbit_float x : {f32, f16, bf16})
            for (size_t m = 0; m <= 100; m++)
                for (size_t blocksize = 32; blocksize <= 4096; blocksize *= 2)
                    for (size_t k : {(size_t)0, (size_t)1, (size_t)64, blocksize / 2, 3 * blocksize,
                                     5 * blocksize + 1}) {
                        const Lut4Row *want = lut4_rows;
                        while (want != std::end(lut4_rows) &&
                               !want->serves(mask, x, m, k, blocksize))
                            want++;
                        const lowbit_lut4_gemm *have =
                            lowbit_lut4_select_gemm(mask, (lowbit_dtype)x, m, k, blocksize);
                        ASSERT_EQ(have == nullptr, want == std::end(lut4_rows))
                            << "mask " << mask << ", m " << m << ", k " << k << ", blocks of "
                            << blocksize;
                        if (!have)
                            continue;
                        ASSERT_EQ(have->name, want->name) << "mask " << mask << ", m " << m;
                        ASSERT_EQ(have->isa, want->isa);
                        ASSERT_EQ((int)have->type, (int)want->type);
                        ASSERT_EQ(have->mr, want->mr);
                        ASSERT_EQ(have->nr, want->nr);
                        ASSERT_EQ(have->m_min, want->m_min);
                        ASSERT_EQ(have->m_max, want->m_max);
                        ASSERT_EQ(have->least_blocksize, want->least_blocksize);
                        ASSERT_EQ(have->x_layout, want->x_layout);
                        ASSERT_EQ(have->run, want->run);
                        ASSERT_NE(have->arrange[x], nullptr);
                        chosen.insert(have->name);
                    }
    for (const Lut4Row &row : lut4_rows)
        EXPECT_TRUE(chosen.count(row.name)) << row.name << " never runs";
}

// What a processor with AMX multiplies bf16 numbers with, and one that has AVX-512 BF16 without it.
TEST(Dispatch, PrefersFloatsToSlowDotProducts) {
    uint32_t with_amx = 0;
    for (uint32_t bit = 1; lowbit_cpu_isa_name(bit); bit <<= 1)
        with_amx |= bit;
    for (uint32_t mask : {with_amx, with_amx & ~(uint32_t)LOWBIT_ISA_AMX})
        for (size_t m = 1; m <= 49; m++) {
            const bool amx = mask & LOWBIT_ISA_AMX;
            const char *want = amx ? "bf16_32x32__amx" : "bf16_8x16__avx512bf16";
            if (amx && m <= 2)
                want = "f32_8x16__avx512vnni";
            else if (m > 48)
                want = nullptr;
            const lowbit_lut4_gemm *have =
                lowbit_lut4_select_gemm(mask, LOWBIT_BFLOAT16, m, 4096, 64);
            EXPECT_STREQ(have ? have->name : nullptr, want) << "m " << m << ", amx " << amx;
        }
}

TEST(Dispatch, ChoosesTheFirstOfTheOtherLut4Kernels) {
    for (uint32_t mask : masks()) {
        const lowbit_lut4_ukernels have = lowbit_lut4_select_ukernels(mask);
        Chosen<lowbit_lut4_quantize_ukernel> quantize[] = {{mask}, {mask}, {mask}};
        Chosen<lowbit_lut4_dequantize_ukernel> dequantize[] = {{mask}, {mask}, {mask}};
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA)                                                       \
    quantize[type].offer(ISA, lowbit_lut4_quantize_ukernel_##type##__##isa);
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA)                                                     \
    dequantize[type].offer(ISA, lowbit_lut4_dequantize_ukernel_##type##__##isa);
#include "../../kernels/cpu/lut4/elementwise.inc"
        for (int type = f32; type <= bf16; type++) {
            EXPECT_EQ(have.quantize[type], quantize[type].function);
            EXPECT_EQ(have.dequantize[type], dequantize[type].function);
        }
    }
}

} // namespace
