// SPDX-License-Identifier: MIT
// The lut4 operators on a GPU: codes and their values are the bits of the CPU's library, products
// are within rounding of float64, and the same bits in every order of threads.

#include "testing.h"

#include "../c/lut4_testing.h"
#include "../../ops/lut4_cuda.h"

namespace {

const char op[] = "op";

// A weight whose parts are on the device.
struct DeviceWeight {
    DeviceTensor packed, absmax, codebook, nested_absmax, nested_codebook, nested_offset;
    bool nested;
    size_t blocksize;

    explicit DeviceWeight(const Weight4 &w, size_t shift = 0)
        : packed(w.packed, shift), absmax(w.absmax), codebook(w.codebook),
          nested_absmax(w.nested_absmax), nested_codebook(w.nested_codebook),
          nested_offset(w.nested_offset), nested(w.nested), blocksize(w.blocksize) {}
    operator lowbit_lut4_weight() const {
        lowbit_lut4_weight w = {packed, absmax, codebook, blocksize, nullptr, nullptr, nullptr};
        if (nested) {
            w.nested_absmax = nested_absmax;
            w.nested_codebook = nested_codebook;
            w.nested_offset = nested_offset;
        }
        return w;
    }
};

struct Product {
    Weight4 w;
    Tensor x, bias, y;
    bool with_bias;

    Product(Random &random, size_t m, size_t n, size_t k, size_t blocksize, int kind,
            lowbit_dtype x_dtype, lowbit_dtype y_dtype, bool may_pad = true)
        : w(random, n, k, blocksize, kind, random.one_in(2), false),
          x(x_dtype, m, k, may_pad && random.one_in(3) ? random.below(70) : 0),
          bias(Tensor::vector(random.pick(float_dtypes), n)),
          y(y_dtype, m, n, may_pad && random.one_in(3) ? random.below(70) : 0),
          with_bias(random.one_in(2)) {
        fill(x, random, random.one_in(3) ? scaled_rows : ordinary);
        fill(bias, random, ordinary);
    }

    std::string text() const {
        return "M=" + std::to_string(x->rows) + " weight " + w.text() +
               " x=" + dtype_name(x->dtype) + " y=" + dtype_name(y->dtype) +
               (with_bias ? " bias" : "");
    }

    // The same bits every time, left in y.
    void run() {
        const DeviceTensor device_x(x), device_bias(bias);
        const DeviceWeight weight(w);
        const size_t size = lowbit_lut4_linear_cuda_workspace_size(x->rows, w.n, w.k);
        Tensor first(y->dtype, y->rows, y->cols, y->stride - y->cols);
        bool again = false;
        in_every_order([&] {
            y.clear();
            const DeviceTensor device_y(y);
            const Device<uint8_t> workspace(size + !size);
            const lowbit_lut4_linear_args args = {
                device_x, weight, with_bias ? (const lowbit_tensor *)device_bias : nullptr,
                device_y};
            ASSERT_EQ(lowbit_lut4_linear_cuda(op, &args, nullptr, workspace.data(), size),
                      LOWBIT_OK)
                << lowbit_last_error();
            device_y.get(y);
            if (again) {
                EXPECT_TRUE(same_bits(first, y));
            }
            first.copy(y);
            again = true;
        });
    }

    // A few roundings of fp32 for each term, of which a codebook in fp16 makes 2^-12 for bfloat16
    // x, and what numbers far below a row's largest lose.
    void expect_close() const {
        const lowbit_lut4_linear_args args{x, w, or_null(with_bias, bias), y};
        for (size_t row = 0; row < y->rows; row++) {
            double most = 0;
            for (size_t k = 0; k < x->cols; k++)
                most = std::max(most, (double)std::fabs(x.get(row, k)));
            for (size_t col = 0; col < y->cols; col++) {
                const reference_sum sum = reference_lut4_linear(&args, row, col, false);
                const double relative =
                    (double)(x->cols + 16) * 0x1p-24 + (x->dtype == LOWBIT_BFLOAT16 ? 0x1p-12 : 0);
                const double bound =
                    relative * sum.magnitude + 0x1p-38 * most * (double)x->cols * 300 + 0x1p-118;
                if (std::fabs(sum.value) < (y->dtype == LOWBIT_FLOAT16 ? 65000 : FLT_MAX / 4)) {
                    ASSERT_NEAR(y.get(row, col), sum.value,
                                bound + rounding(y->dtype, std::fabs(sum.value) + bound))
                        << "row " << row << " column " << col;
                }
            }
        }
    }
};

void check(Product p) {
    SCOPED_TRACE(p.text());
    p.run();
    if (!testing::Test::HasFailure())
        p.expect_close();
}

const size_t blocksizes[] = {64, 64, 128, 256};

TEST(CudaLut4Linear, Samples) {
    Random random(500);
    const size_t rows[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 40, 64, 65, 128};
    for (size_t m : rows)
        for (lowbit_dtype dtype : float_dtypes)
            if (!HasFailure()) {
                const size_t blocksize = random.pick(blocksizes), n = random.size(200);
                const size_t k = blocksize * (1 + random.below(1024 / blocksize));
                check(Product(random, m, n, k, blocksize, (int)random.below(codebook16_kinds),
                              dtype, random.pick(float_dtypes)));
            }
}

// What is left to another library.
TEST(CudaLut4Linear, ManyRows) {
    Random random(503);
    for (lowbit_dtype dtype : {LOWBIT_FLOAT16, LOWBIT_BFLOAT16}) {
        Product p(random, dtype == LOWBIT_FLOAT16 ? 129 : 257, 8, 64, 64, nf4, dtype, dtype);
        const lowbit_lut4_linear_args args{p.x, p.w, nullptr, p.y};
        EXPECT_EQ(lowbit_lut4_linear_cuda(op, &args, nullptr, nullptr, 0), LOWBIT_UNSUPPORTED);
    }
}

// So long that each of a warp's buffers is used again, and the last turn is not every warp's.
TEST(CudaLut4Linear, LongRows) {
    Random random(504);
    for (size_t m : {1, 2, 5, 20})
        for (lowbit_dtype dtype : float_dtypes)
            if (!HasFailure())
                check(Product(random, m, 20, 64 * 75, 64, nf4, dtype, dtype));
}

TEST(CudaLut4Linear, NoColumns) {
    Random random(507);
    for (size_t m : {1, 3, 20})
        check(Product(random, m, 20, 0, 64, nf4, LOWBIT_FLOAT32, LOWBIT_FLOAT32));
}

TEST(CudaLut4Linear, MoreRowsThanAtATime) {
    Random random(506);
    check(Product(random, 1030, 9, 128, 64, nf4, LOWBIT_FLOAT32, LOWBIT_FLOAT32));
}

// Every sector is used, and lanes that are at shared memory at once find different banks: but for
// scales, of which a warp takes 16 bytes a row, and their codebook.
TEST(CudaLut4Linear, MemoryTrafficIsNearItsLeast) {
    Random random(505);
    for (size_t m : {1, 8, 16, 64})
        for (lowbit_dtype dtype : {LOWBIT_BFLOAT16, LOWBIT_FLOAT16}) {
            Product p(random, m, 64, 2048, 64, nf4, dtype, dtype, false);
            SCOPED_TRACE(p.text());
            emu::settings.count = true;
            p.run();
            emu::settings.count = false;
            const emu::Traffic global = emu::total(emu::Space::global),
                               shared = emu::total(emu::Space::shared);
            EXPECT_LT(global.ratio(), 1.25) << global.text();
            EXPECT_LT(shared.ratio(), 1.1) << shared.text();
        }
}

// As precise as torch's own product with the dequantized weight, which is rounded to x's dtype
// first.
TEST(CudaLut4Linear, ErrorIsThatOfARoundedWeight) {
    Random random(501);
    for (lowbit_dtype dtype : {LOWBIT_FLOAT16, LOWBIT_BFLOAT16}) {
        Product p(random, 128, 256, 512, 64, nf4, dtype, dtype);
        SCOPED_TRACE(p.text());
        emu::settings.order = emu::Order::forward;
        p.run();
        Tensor weight(dtype, p.w.n, p.w.k), exact(LOWBIT_FLOAT32, p.w.n, p.w.k);
        const lowbit_lut4_weight w = p.w;
        reference_lut4_dequantize(&w, weight);
        reference_lut4_dequantize(&w, exact);
        double ours = 0, theirs = 0;
        Tensor rounded(dtype, 1, 1);
        for (size_t m = 0; m < p.x->rows; m++)
            for (size_t n = 0; n < p.w.n; n++) {
                double sum = 0, truth = 0;
                for (size_t k = 0; k < p.w.k; k++) {
                    sum += (double)p.x.get(m, k) * weight.get(n, k);
                    truth += (double)p.x.get(m, k) * exact.get(n, k);
                }
                const double shift = p.with_bias ? p.bias.get(n, 0) : 0;
                rounded.set(0, 0, (float)(sum + shift));
                ours += std::pow(p.y.get(m, n) - (truth + shift), 2);
                theirs += std::pow(rounded.get(0, 0) - (truth + shift), 2);
            }
        EXPECT_LE(std::sqrt(ours), 1.01 * std::sqrt(theirs));
        EXPECT_GT(ours, 0);
    }
}

TEST(CudaLut4Dequantize, Samples) {
    Random random(502);
    for (int i = 0; i < 40 && !HasFailure(); i++) {
        const size_t n = random.size(40), k = random.size(600);
        const Weight4 w(random, n, k, random.pick(blocksizes16),
                        (int)random.below(codebook16_kinds), random.one_in(2), random.one_in(3));
        SCOPED_TRACE(w.text());
        const lowbit_dtype dtype = random.pick(float_dtypes);
        Tensor out(dtype, n, k);
        const Tensor expected(dtype, n, k);
        const lowbit_lut4_weight host = w;
        ASSERT_EQ(lowbit_lut4_dequantize(&host, expected, nullptr), LOWBIT_OK);
        const DeviceWeight device(w, random.one_in(3));
        const lowbit_lut4_weight weight = device;
        in_every_order([&] {
            const DeviceTensor device_out(out, 0, false);
            ASSERT_EQ(lowbit_lut4_dequantize_cuda(op, &weight, device_out, nullptr), LOWBIT_OK);
            device_out.get(out);
            EXPECT_TRUE(same_bits(expected, out));
        });
    }
}

TEST(CudaLut4Quantize, Samples) {
    Random random(503);
    for (int i = 0; i < 40 && !HasFailure(); i++) {
        const size_t n = random.size(40), k = random.size(600),
                     blocksize = random.pick(blocksizes16);
        const int kind = (int)random.below(all_codebook16_kinds);
        SCOPED_TRACE(std::to_string(n) + " x " + std::to_string(k) + " " + codebook16_name(kind));
        const Tensor book = codebook16(kind, random);
        Tensor x(random.pick(float_dtypes), n, k);
        fill(x, random, random.pick(value_kinds));
        Tensor packed = Tensor::vector(LOWBIT_UINT8, (n * k + 1) / 2);
        Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, (n * k + blocksize - 1) / blocksize);
        const Tensor expected = Tensor::vector(LOWBIT_UINT8, packed->rows);
        const Tensor scales = Tensor::vector(LOWBIT_FLOAT32, absmax->rows);
        ASSERT_EQ(lowbit_lut4_quantize(x, book, blocksize, expected, scales, nullptr), LOWBIT_OK);
        const DeviceTensor device_x(x), device_book(book);
        in_every_order([&] {
            const DeviceTensor device_packed(packed, 0, false), device_absmax(absmax, 0, false);
            ASSERT_EQ(lowbit_lut4_quantize_cuda(op, device_x, device_book, blocksize, device_packed,
                                                device_absmax, nullptr),
                      LOWBIT_OK);
            device_packed.get(packed);
            device_absmax.get(absmax);
            EXPECT_TRUE(same_bits(scales, absmax));
            EXPECT_TRUE(same_bits(expected, packed));
        });
    }
}

} // namespace
