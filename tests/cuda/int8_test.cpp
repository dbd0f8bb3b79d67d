// SPDX-License-Identifier: MIT
// The int8 operators on a GPU give the bits of the reference, in every order of threads.

#include "testing.h"

#include "../c/int8_testing.h"
#include "../../ops/int8_cuda.h"

namespace {

const char op[] = "op";

// The threshold as kernels take it.
float limit(float threshold) {
    return threshold == 0 ? INFINITY : threshold;
}

// Expects what the device makes of d; gaps keep what is in y.
void run_linear(const LinearCase &c, LinearData &d, size_t weight_shift = 0) {
    d.y.clear();
    const DeviceTensor x(d.x), weight(d.weight, weight_shift), absmax(d.absmax), offset(d.offset),
        bias(d.bias), y(d.y);
    const size_t size = lowbit_int8_linear_cuda_workspace_size(c.m, c.n, c.k);
    const Device<uint8_t> workspace(size + !size);
    const lowbit_int8_linear_args args = {x,
                                          weight,
                                          absmax,
                                          c.offset ? (const lowbit_tensor *)offset : nullptr,
                                          c.bias ? (const lowbit_tensor *)bias : nullptr,
                                          0,
                                          y};
    ASSERT_EQ(
        lowbit_int8_linear_cuda(op, &args, limit(c.threshold), nullptr, workspace.data(), size),
        LOWBIT_OK)
        << lowbit_last_error();
    y.get(d.y);
    EXPECT_TRUE(same_bits(d.expected, d.y));
}

void check_linear(const LinearCase &c, Random &random, size_t weight_shift = 0) {
    SCOPED_TRACE(c.text());
    LinearData d(c, random);
    in_every_order([&] { run_linear(c, d, weight_shift); });
}

// Every number of rows that a kernel for few takes, and more around where tiles end.
TEST(CudaInt8Linear, Samples) {
    Random random(400);
    const size_t rows[] = {1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257};
    for (size_t m : rows)
        for (int i = 0; i < 2 && !HasFailure(); i++) {
            size_t n = random.size(300), k = random.size(1200);
            cut(m, n, k, 600000);
            if (random.one_in(2))
                k = (k + 15) / 16 * 16;
            LinearCase c = LinearCase::random(random, m, n, k);
            check_linear(c, random, random.one_in(4));
        }
}

// Rows of several chunks of 1024, of more than a block of threads keeps, and with more columns than
// a tile marks by itself.
TEST(CudaInt8Linear, LongRows) {
    Random random(401);
    for (size_t m : {1, 5, 20})
        for (size_t k : {1024, 1025, 2048, 4112, 9000})
            if (!HasFailure())
                check_linear(LinearCase::random(random, m, 1 + random.below(20), k), random);
    check_linear(LinearCase::random(random, 17, 5, 33000), random);
    check_linear(LinearCase::random(random, 140, 3, 3100), random);
}

TEST(CudaInt8Linear, NothingToSum) {
    Random random(402);
    for (size_t m : {0, 1, 20})
        for (size_t n : {0, 1, 33})
            for (size_t k : {0, 1})
                if (!HasFailure())
                    check_linear(LinearCase::random(random, m, n, k), random);
}

// Of aligned tensors every sector is used and every bank too, but for what few threads do; with
// outliers the product also reads bytes of the weight's columns and a code of each list at a time.
TEST(CudaInt8Linear, MemoryTrafficIsNearItsLeast) {
    Random random(406);
    for (size_t m : {1, 16, 128})
        for (float threshold : {0.0f, 6.0f}) {
            LinearCase c = LinearCase::random(random, m, 128, 1024);
            c.x_dtype = c.y_dtype = LOWBIT_BFLOAT16;
            c.x_gap = c.y_gap = 0;
            c.threshold = threshold;
            c.values = ordinary;
            c.outliers = columns;
            SCOPED_TRACE(c.text());
            LinearData d(c, random);
            emu::reset();
            emu::settings.order = emu::Order::forward;
            emu::settings.count = true;
            run_linear(c, d);
            emu::settings.count = false;
            const emu::Traffic global = emu::total(emu::Space::global),
                               shared = emu::total(emu::Space::shared);
            EXPECT_LT(global.ratio(), threshold ? 2 : 1.15) << global.text();
            EXPECT_LT(shared.ratio(), 1.25) << shared.text();
        }
}

TEST(CudaInt8Matmul, Samples) {
    Random random(403);
    for (int i = 0; i < 12 && !HasFailure(); i++) {
        size_t m = random.size(200), n = random.size(200), k = random.size(500);
        cut(m, n, k, 600000);
        if (random.one_in(2))
            k = (k + 15) / 16 * 16;
        Tensor a(LOWBIT_INT8, m, k, random.one_in(2) ? 16 * random.below(3) : random.below(9)),
            b(LOWBIT_INT8, n, k), out(LOWBIT_INT32, m, n);
        const Tensor expected(LOWBIT_INT32, m, n);
        fill_codes(a, random, -128);
        fill_codes(b, random, -128);
        reference_int8_matmul(a, b, expected);
        const DeviceTensor device_a(a), device_b(b);
        in_every_order([&] {
            const DeviceTensor device_out(out, 0, false);
            ASSERT_EQ(lowbit_int8_matmul_cuda(op, device_a, device_b, device_out, nullptr),
                      LOWBIT_OK);
            device_out.get(out);
            EXPECT_TRUE(same_bits(expected, out)) << m << " " << n << " " << k;
        });
    }
}

// In a tile of rows that lie 2^31 elements apart.
TEST(CudaInt8Matmul, FarRows) {
    const size_t m = 3, n = 2, k = 16, stride = ((size_t)1 << 31) + 16;
    Random random(407);
    Tensor near(LOWBIT_INT8, m, k), b(LOWBIT_INT8, n, k), out(LOWBIT_INT32, m, n);
    const Tensor expected(LOWBIT_INT32, m, n);
    fill_codes(near, random, -128);
    fill_codes(b, random, -128);
    reference_int8_matmul(near, b, expected);
    const Device<int8_t> far((m - 1) * stride + k);
    for (size_t row = 0; row < m; row++)
        ASSERT_EQ(cudaMemcpy(far.data() + row * stride, (const int8_t *)near->data + row * k, k,
                             cudaMemcpyHostToDevice),
                  cudaSuccess);
    const lowbit_tensor a = {far.data(), LOWBIT_INT8, m, k, stride};
    const DeviceTensor device_b(b), device_out(out, 0, false);
    ASSERT_EQ(lowbit_int8_matmul_cuda(op, &a, device_b, device_out, nullptr), LOWBIT_OK);
    device_out.get(out);
    EXPECT_TRUE(same_bits(expected, out));
}

TEST(CudaInt8Quantize, Samples) {
    Random random(404);
    for (int i = 0; i < 40 && !HasFailure(); i++) {
        const size_t m = random.size(20), k = random.size(5000);
        const bool with_offset = random.one_in(2);
        const lowbit_dtype dtype = random.pick(float_dtypes), scales = random.pick(scale_dtypes);
        Tensor x(dtype, m, k, random.one_in(2) ? random.below(9) : 0), q(LOWBIT_INT8, m, k);
        Tensor absmax = Tensor::vector(scales, m), offset = Tensor::vector(scales, m);
        fill(x, random, random.pick(value_kinds));
        limit_to_f16(x);
        const float threshold = random.one_in(2) && !with_offset ? 2.0f : 0.0f;
        const Tensor expected_q(LOWBIT_INT8, m, k), expected_absmax = Tensor::vector(scales, m),
                                                    expected_offset = Tensor::vector(scales, m);
        ASSERT_EQ(with_offset
                      ? lowbit_int8_quantize_offset(x, expected_q, expected_absmax, expected_offset,
                                                    nullptr)
                      : lowbit_int8_quantize(x, threshold, expected_q, expected_absmax, nullptr),
                  LOWBIT_OK)
            << lowbit_last_error();
        const DeviceTensor device_x(x);
        in_every_order([&] {
            const DeviceTensor device_q(q, 0, false), device_absmax(absmax, 0, false),
                device_offset(offset, 0, false);
            ASSERT_EQ(lowbit_int8_quantize_cuda(
                          op, device_x, limit(threshold), device_q, device_absmax,
                          with_offset ? (const lowbit_tensor *)device_offset : nullptr, nullptr),
                      LOWBIT_OK);
            device_q.get(q);
            device_absmax.get(absmax);
            EXPECT_TRUE(same_bits(expected_q, q));
            EXPECT_TRUE(same_bits(expected_absmax, absmax));
            if (with_offset) {
                device_offset.get(offset);
                EXPECT_TRUE(same_bits(expected_offset, offset));
            }
        });
    }
}

TEST(CudaInt8Dequantize, Samples) {
    Random random(405);
    for (int i = 0; i < 30 && !HasFailure(); i++) {
        const size_t m = random.size(20), k = random.size(5000);
        const bool with_offset = random.one_in(2);
        const lowbit_dtype dtype = random.pick(float_dtypes), scales = random.pick(scale_dtypes);
        Tensor q(LOWBIT_INT8, m, k, random.one_in(2) ? random.below(9) : 0);
        Tensor absmax = Tensor::vector(scales, m), offset = Tensor::vector(scales, m);
        const size_t gap = random.one_in(2) ? random.below(9) : 0;
        Tensor out(dtype, m, k, gap);
        const Tensor expected(dtype, m, k, gap);
        fill_codes(q, random, -127);
        fill_scales(absmax, offset, random, random.pick(value_kinds));
        ASSERT_EQ(
            lowbit_int8_dequantize(q, absmax, or_null(with_offset, offset), expected, nullptr),
            LOWBIT_OK);
        const DeviceTensor device_q(q), device_absmax(absmax), device_offset(offset);
        in_every_order([&] {
            out.clear();
            const DeviceTensor device_out(out);
            ASSERT_EQ(lowbit_int8_dequantize_cuda(op, device_q, device_absmax,
                                                  with_offset ? (const lowbit_tensor *)device_offset
                                                              : nullptr,
                                                  device_out, nullptr),
                      LOWBIT_OK);
            device_out.get(out);
            EXPECT_TRUE(same_bits(expected, out));
        });
    }
}

} // namespace
