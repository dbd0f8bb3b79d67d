// SPDX-License-Identifier: MIT
// lut4_quantize and lut4_dequantize equal the reference in bits: at every instruction set, with every
// executor, in any floating-point environment.

#include "lut4_testing.h"

#include <cfloat>

namespace {

// A weight [n, k] of floats, and what it is quantized to.
struct Quantize {
    Tensor weight, packed, absmax, expected_packed, expected_absmax;

    Quantize(lowbit_dtype dtype, size_t n, size_t k, size_t blocksize)
        : weight(dtype, n, k), packed(Tensor::vector(LOWBIT_UINT8, (n * k + 1) / 2)),
          absmax(Tensor::vector(LOWBIT_FLOAT32, (n * k + blocksize - 1) / blocksize)),
          expected_packed(Tensor::vector(LOWBIT_UINT8, packed->rows)),
          expected_absmax(Tensor::vector(LOWBIT_FLOAT32, absmax->rows)) {}

    void expect_reference(const Tensor &codebook, size_t blocksize) {
        weight.make_read_only();
        reference_lut4_quantize(weight, codebook, blocksize, expected_packed, expected_absmax);
        expect_everywhere(
            [&](const Executor &executor) {
                packed.clear();
                absmax.clear();
                return lowbit_lut4_quantize(weight, codebook, blocksize, packed, absmax, executor);
            },
            [&] {
                EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
                EXPECT_TRUE(same_bits(expected_packed, packed)) << "packed";
            });
    }
};

std::string text_of(lowbit_dtype dtype, size_t n, size_t k, size_t blocksize, int kind) {
    return std::to_string(n) + " x " + std::to_string(k) + " in blocks of " +
           std::to_string(blocksize) + " " + dtype_name(dtype) + " codebook " +
           codebook16_name(kind);
}

TEST(Lut4Quantize, Samples) {
    Random random(310);
    for (int i = 0; i < samples(200) && !HasFailure(); i++) {
        size_t n = random.size(300), k = random.size(5000);
        cut(1, n, k, 60000);
        const lowbit_dtype dtype = random.pick(float_dtypes);
        const size_t blocksize = random.pick(blocksizes16);
        const auto kind = (int)random.below(all_codebook16_kinds);
        SCOPED_TRACE(text_of(dtype, n, k, blocksize, kind));
        Quantize q(dtype, n, k, blocksize);
        fill(q.weight, random, random.pick(value_kinds));
        const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
        for (size_t at = random.size(3000); at < n * k; at += random.size(3000))
            q.weight.set(at / k, at % k, random.pick(special));
        q.expect_reference(codebook16(kind, random), blocksize);
    }
}

// Odd counts, single elements and nothing at all, in short blocks.
TEST(Lut4Quantize, Edges) {
    Random random(311);
    for (size_t n : {0, 1, 2, 3, 7})
        for (size_t k : {0, 1, 2, 31, 33, 65}) {
            SCOPED_TRACE(text_of(LOWBIT_FLOAT32, n, k, 32, nf4));
            Quantize q(LOWBIT_FLOAT32, n, k, 32);
            fill(q.weight, random, ordinary);
            q.expect_reference(codebook16(nf4, random), 32);
        }
}

// What 4 bits cost: with blocks of 64 and double quantization 4.127 bits an element.
TEST(Lut4Quantize, StoresFourBitsAndScales) {
    Random random(312);
    const Weight4 flat(random, 64, 4096, 64, nf4, false, false);
    EXPECT_EQ(flat.packed.buffer().size() * 8, 64 * 4096 * 4);
    EXPECT_EQ(flat.absmax.buffer().size() * 8, 64 * 4096 / 64 * 32);
    const Weight4 nested(random, 64, 4096, 64, nf4, true, false);
    const size_t bytes = nested.packed.buffer().size() + nested.absmax.buffer().size() +
                         nested.nested_absmax.buffer().size();
    EXPECT_NEAR((double)bytes * 8 / (64 * 4096), 4.127, 0.0005);
    const Tensor out(LOWBIT_FLOAT32, 64, 4096);
    for (const Weight4 *w : {&flat, &nested}) {
        const lowbit_lut4_weight weight = *w;
        EXPECT_EQ(lowbit_lut4_dequantize(&weight, out, nullptr), LOWBIT_OK) << lowbit_last_error();
    }
}

// The rest checks the specification itself, by hand.

// Quantizes values, with absmax 1, at every instruction set.
void expect_codes(const std::vector<float> &values16, const std::vector<float> &values,
                  const std::vector<int> &codes) {
    Tensor codebook = Tensor::vector(LOWBIT_FLOAT32, 16);
    for (size_t i = 0; i < 16; i++)
        codebook.set(i, 0, values16[std::min(i, values16.size() - 1)]);
    Tensor weight = Tensor::vector(LOWBIT_FLOAT32, values.size());
    for (size_t i = 0; i < values.size(); i++)
        weight.set(i, 0, values[i]);
    const Tensor packed = Tensor::vector(LOWBIT_UINT8, (values.size() + 1) / 2);
    const Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, 1);
    expect_everywhere(
        [&](const Executor &executor) {
            return lowbit_lut4_quantize(weight, codebook, 64, packed, absmax, executor);
        },
        [&] {
            for (size_t i = 0; i < codes.size(); i++) {
                const uint8_t byte = packed.at<uint8_t>(i / 2, 0);
                EXPECT_EQ(i % 2 ? byte & 15 : byte >> 4, codes[i])
                    << "the code at " << i << " of " << values.size();
            }
        });
}

TEST(Lut4Quantize, TiesGoToTheSmallerValue) {
    expect_codes({-1, -0.5f, 0, 0.5f, 1}, {-0.75f, -0.25f, 0.25f, 0.75f, 0.75001f, 1},
                 {0, 1, 2, 3, 4, 4});
    expect_codes({1, 0.5f, 0, -0.5f, -1}, {-0.75f, -0.25f, 0.25f, 0.75f, 0.75001f, 1},
                 {4, 3, 2, 1, 0, 0});
}

TEST(Lut4Quantize, EqualValuesHaveTheSmallestCode) {
    expect_codes({1, 0, -0.0f, 1, 0, -1, -1}, {1, 0, -0.0f, -1, 0.75f, -0.75f}, {0, 1, 1, 5, 0, 5});
    expect_codes({0.5f}, {-1, 0, 0.5f, 1}, {0, 0, 0, 0});
}

TEST(Lut4Quantize, AnOddCountEndsInTheCodeOfZero) {
    expect_codes({1, 0.25f, 0, -1}, {1}, {0, 2});
    expect_codes({1, 0.25f, -0.125f, -1}, {1, -1, 1}, {0, 3, 0, 2});
}

TEST(Lut4Quantize, WhatIsNotFiniteIsZero) {
    expect_codes({-1, 0, 1}, {NAN, INFINITY, -INFINITY, -0.0f, 1, -1}, {1, 1, 1, 1, 2, 0});
}

// 1 / absmax would overflow: such a block is all zeros, but absmax is kept.
TEST(Lut4Quantize, BlocksBelowTheNormalNumbersAreZero) {
    const float least = std::nextafter(FLT_MIN, 0.0f);
    expect_codes({-1, 0, 1}, {-least, FLT_TRUE_MIN, least}, {1, 1, 1});
    expect_codes({-1, 0, 1}, {-FLT_MIN, FLT_TRUE_MIN, FLT_MIN}, {0, 1, 2});
    expect_codes({-1, 0, 1}, {-FLT_MAX, FLT_MIN, FLT_MAX}, {0, 1, 2});
}

// Their midpoints are subnormal: they are lost where those count as zero.
TEST(Lut4Quantize, CodebooksOfSubnormals) {
    const float u = FLT_TRUE_MIN;
    expect_codes({-8 * u, -4 * u, 0, 4 * u, 8 * u}, {-1, -6 * u, -2 * u, 2 * u, 6 * u, 7 * u, 1},
                 {0, 0, 1, 2, 3, 4, 4});
}

// ---------------------------------------------------------------------------------------------

void check_dequantize(const Weight4 &w, lowbit_dtype dtype) {
    SCOPED_TRACE(w.text() + " to " + dtype_name(dtype));
    const lowbit_lut4_weight weight = w;
    Tensor out(dtype, w.n, w.k), expected(dtype, w.n, w.k);
    reference_lut4_dequantize(&weight, expected);
    expect_everywhere(
        [&](const Executor &executor) {
            out.clear();
            return lowbit_lut4_dequantize(&weight, out, executor);
        },
        [&] { EXPECT_TRUE(same_bits(expected, out)); });
}

TEST(Lut4Dequantize, Samples) {
    Random random(313);
    for (int i = 0; i < samples(200) && !testing::Test::HasFailure(); i++) {
        size_t n = random.size(300), k = random.size(5000);
        cut(1, n, k, 60000);
        const Weight4 w(random, n, k, random.pick(blocksizes16),
                        (int)random.below(all_codebook16_kinds), random.one_in(2),
                        random.one_in(3));
        check_dequantize(w, random.pick(float_dtypes));
    }
}

TEST(Lut4Dequantize, Edges) {
    Random random(314);
    for (size_t n : {0, 1, 2, 3, 7})
        for (size_t k : {0, 1, 2, 31, 33, 65})
            for (bool nested : {false, true})
                check_dequantize(Weight4(random, n, k, 32, fp4, nested, false), LOWBIT_FLOAT16);
}

// Nested scales change after 256 blocks, wherever a thread begins.
TEST(Lut4Dequantize, ManyNestedScales) {
    Random random(315);
    check_dequantize(Weight4(random, 37, 1111, 32, nf4, true, false), LOWBIT_FLOAT32);
    check_dequantize(Weight4(random, 37, 1111, 32, unsorted16, true, true), LOWBIT_BFLOAT16);
}

} // namespace
