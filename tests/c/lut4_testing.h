// SPDX-License-Identifier: MIT
// Codebooks of 16 values of every kind, and 4-bit weights.
#ifndef LOWBIT_TESTS_LUT4_TESTING_H
#define LOWBIT_TESTS_LUT4_TESTING_H

#include "codebooks.h"

#include <optional>

enum Codebook16 {
    nf4,
    fp4,        // unsorted, with zeros of both signs
    unsorted16, // within (-1, 1)
    few16,      // each many times
    one_value16,
    wide16,                    // beyond 1
    codebook16_kinds,          // those are for products; quantization takes these too:
    tiny16 = codebook16_kinds, // subnormals
    whole_range16,             // any finite floats
    all_codebook16_kinds
};

inline const char *codebook16_name(int kind) {
    static const char *const names[] = {"nf4",       "fp4",  "unsorted", "few values",
                                        "one value", "wide", "tiny",     "whole range"};
    return names[kind];
}

inline Tensor codebook16(int kind, Random &random) {
    // Quantiles of the normal distribution (Dettmers et al., 2023, arXiv:2305.14314), and sign,
    // two bits of exponent and one of mantissa.
    const float normal[] = {-1.0f,
                            -0.6961928009986877f,
                            -0.5250730514526367f,
                            -0.39491748809814453f,
                            -0.28444138169288635f,
                            -0.18477343022823334f,
                            -0.09105003625154495f,
                            0.0f,
                            0.07958029955625534f,
                            0.16093020141124725f,
                            0.24611230194568634f,
                            0.33791524171829224f,
                            0.44070982933044434f,
                            0.5626170039176941f,
                            0.7229568362236023f,
                            1.0f};
    const float half[] = {0.0f,      0.0625f / 12, 8.0f / 12, 1.0f,
                          4.0f / 12, 6.0f / 12,    2.0f / 12, 0.25f};
    const float few[] = {-0.5f, -0.0f, 0.0f, 0.25f, 1.0f}, one = random.uniform(-1, 1);
    Tensor tensor = Tensor::vector(LOWBIT_FLOAT32, 16);
    for (size_t i = 0; i < 16; i++)
        tensor.set(i, 0,
                   kind == nf4           ? normal[i]
                   : kind == fp4         ? (i < 8 ? half[i] : -half[i - 8])
                   : kind == unsorted16  ? random.uniform(-1, 1)
                   : kind == few16       ? random.pick(few)
                   : kind == one_value16 ? one
                   : kind == wide16      ? random.uniform(-300, 300)
                   : kind == tiny16      ? std::ldexp(random.uniform(-1, 1), -146)
                                         : finite_float(random));
    tensor.make_read_only();
    return tensor;
}

const size_t blocksizes16[] = {32, 64, 64, 64, 128, 256, 512, 1024, 2048, 4096};

// A weight [n, k] of random codes.
struct Weight4 {
    size_t n, k, blocksize;
    int kind;
    bool nested;
    Tensor packed, absmax, codebook, nested_absmax, nested_codebook, nested_offset;

    // wild: scales of any bits. Else they are positive or, with double quantization, mostly so.
    Weight4(Random &random, size_t n, size_t k, size_t blocksize, int kind, bool nested, bool wild)
        : n(n), k(k), blocksize(blocksize), kind(kind), nested(nested),
          packed(Tensor::vector(LOWBIT_UINT8, (n * k + 1) / 2)),
          absmax(Tensor::vector(nested ? LOWBIT_UINT8 : LOWBIT_FLOAT32, blocks())),
          codebook(codebook16(kind, random)),
          nested_absmax(Tensor::vector(LOWBIT_FLOAT32, (blocks() + 255) / 256)),
          nested_codebook(Tensor::vector(LOWBIT_FLOAT32, 256)),
          nested_offset(Tensor::vector(LOWBIT_FLOAT32, 1)) {
        for (size_t i = 0; i < packed->rows; i++)
            packed.at<uint8_t>(i, 0) = (uint8_t)random.bits();
        for (size_t i = 0; i < blocks(); i++)
            if (nested)
                absmax.at<uint8_t>(i, 0) = (uint8_t)random.bits();
            else
                absmax.set(i, 0, random.uniform(0.001f, 1));
        for (size_t i = 0; i < nested_absmax->rows; i++)
            nested_absmax.set(i, 0, random.uniform(0.1f, 1));
        for (size_t i = 0; i < 256; i++)
            nested_codebook.set(i, 0, random.uniform(-1, 1));
        nested_offset.set(0, 0, random.uniform(0.5f, 1));
        if (wild) {
            if (!nested)
                fill(absmax, random, any_bits);
            fill(nested_absmax, random, any_bits);
        }
        for (Tensor *t : {&packed, &absmax, &nested_absmax, &nested_codebook, &nested_offset})
            t->make_read_only();
    }

    size_t blocks() const { return (n * k + blocksize - 1) / blocksize; }

    operator lowbit_lut4_weight() const {
        return {packed,
                absmax,
                codebook,
                blocksize,
                or_null(nested, nested_absmax),
                or_null(nested, nested_codebook),
                or_null(nested, nested_offset)};
    }

    std::string text() const {
        return std::to_string(n) + " x " + std::to_string(k) + " in blocks of " +
               std::to_string(blocksize) + " codebook " + codebook16_name(kind) +
               (nested ? " nested" : "");
    }
};

#endif
