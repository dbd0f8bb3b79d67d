// SPDX-License-Identifier: MIT
// The rows of kernels/cpu/int8/elementwise.inc as test parameters, and bounds for checking the
// scalar ones against float64.
#ifndef LOWBIT_TESTS_ELEMENTWISE_TESTING_H
#define LOWBIT_TESTS_ELEMENTWISE_TESTING_H

#include "ukernel_testing.h"

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_EMULATE(signature, type, isa)                                                       \
    LOWBIT_DECLARE_##isa(lowbit_int8_##signature##_ukernel,                                        \
                         lowbit_int8_##signature##_ukernel_##type##__##isa)
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_EMULATE(range, type, isa)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_EMULATE(codes, type, isa)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_EMULATE(dequantize, type, isa)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_EMULATE(epilogue, type, isa)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_EMULATE(panel, type, isa)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_EMULATE(fma, type, isa)
#define LOWBIT_PAIRS(type, isa, ISA) LOWBIT_EMULATE(pairs, type, isa)
#define LOWBIT_SCALE(type, isa, ISA) LOWBIT_EMULATE(scale, type, isa)
#include "../../kernels/cpu/int8/elementwise.inc"
}
#endif

struct ElementwiseRows {
    std::vector<Variant<lowbit_int8_range_ukernel>> range;
    std::vector<Variant<lowbit_int8_codes_ukernel>> codes;
    std::vector<Variant<lowbit_int8_dequantize_ukernel>> dequantize;
    std::vector<Variant<lowbit_int8_epilogue_ukernel>> epilogue;
    std::vector<Variant<lowbit_int8_panel_ukernel>> panel;
    std::vector<Variant<lowbit_int8_fma_ukernel>> fma;
    std::vector<Variant<lowbit_int8_pairs_ukernel>> pairs;
    std::vector<Variant<lowbit_int8_scale_ukernel>> scale;

    ElementwiseRows() {
#define LOWBIT_ADD(signature, type, isa, ISA)                                                      \
    add_variants(signature, #type "__" #isa, ISA,                                                  \
                 lowbit_int8_##signature##_ukernel_##type##__##isa,                                \
                 LOWBIT_EMULATED_##isa(lowbit_int8_##signature##_ukernel_##type##__##isa));
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_ADD(range, type, isa, ISA)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_ADD(codes, type, isa, ISA)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_ADD(dequantize, type, isa, ISA)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_ADD(epilogue, type, isa, ISA)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_ADD(panel, type, isa, ISA)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_ADD(fma, type, isa, ISA)
#define LOWBIT_PAIRS(type, isa, ISA) LOWBIT_ADD(pairs, type, isa, ISA)
#define LOWBIT_SCALE(type, isa, ISA) LOWBIT_ADD(scale, type, isa, ISA)
#include "../../kernels/cpu/int8/elementwise.inc"
    }
};

inline const ElementwiseRows &rows() {
    static const ElementwiseRows rows;
    return rows;
}

inline lowbit_float type_of(const std::string &name) {
    return name[0] == 'b' ? bf16 : name[1] == '3' ? f32 : f16;
}

inline bool is_scalar(const std::string &name) {
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

inline Rounding rounding(lowbit_float type) {
    switch (type) {
    case f32: return {epsilon, 0x1p-149, 0x1.fffffep127};
    case f16: return {0x1p-11 + epsilon, 0x1p-24, 65504};
    default: return {0x1p-8 + epsilon, 0x1p-133, 0x1.fep127};
    }
}

// value was computed in fp32 within error of exact and then rounded.
inline void expect_rounded(lowbit_float type, double exact, double error, float value) {
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

#endif
