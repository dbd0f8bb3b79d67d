// SPDX-License-Identifier: MIT
// The blockwise kernels give the bits of the CPU's library, in every order of threads.

#include "testing.h"

#include "../c/codebooks.h"
#include "../../kernels/cuda/blockwise/launch.h"

namespace {

const size_t blocksizes[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};

// On either side of where warps, tiles (of 4,096) and grids (of 5 blocks) end.
const size_t sizes[] = {1,    5,    31,   32,   33,   511,   513,   2049,
                        4095, 4096, 4097, 8191, 8193, 12288, 30000, 50000};

struct Case {
    size_t n, blocksize;
    lowbit_dtype dtype;
    int kind;
    Values values;
    size_t shift; // bytes that pointers are past a multiple of 256

    explicit Case(Random &random)
        : n(random.one_in(2) ? random.pick(sizes) : random.size(20000)),
          blocksize(random.pick(blocksizes)), dtype(random.pick(float_dtypes)),
          kind((int)random.below(codebook_kinds)), values(random.pick(value_kinds)),
          shift(random.one_in(3) ? 4 * random.below(4) : 0) {}

    size_t blocks() const { return (n + blocksize - 1) / blocksize; }
    enum lowbit_float type() const { return (enum lowbit_float)dtype; }
    std::string text() const {
        return std::to_string(n) + " in blocks of " + std::to_string(blocksize) + " " +
               dtype_name(dtype) + " values " + value_names[values] + " codebook " +
               codebook_name(kind) + " shifted by " + std::to_string(shift);
    }
};

TEST(CudaBlockwiseQuantize, Samples) {
    Random random(300);
    for (int i = 0; i < samples(60) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor book = codebook(c.kind, random);
        Tensor x = Tensor::vector(c.dtype, c.n), q = Tensor::vector(LOWBIT_UINT8, c.n);
        Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, c.blocks());
        const Tensor expected_q = Tensor::vector(LOWBIT_UINT8, c.n);
        const Tensor expected_absmax = Tensor::vector(LOWBIT_FLOAT32, c.blocks());
        if (random.one_in(2))
            fill(x, random, c.values);
        else
            fill_midpoints(x, book, c.blocksize, random);
        ASSERT_EQ(
            lowbit_blockwise_quantize(x, book, c.blocksize, expected_q, expected_absmax, nullptr),
            LOWBIT_OK);
        const DeviceTensor device_x(x, c.shift), device_book(book, c.shift);
        in_every_order([&] {
            const DeviceTensor device_q(q, c.shift, false), device_absmax(absmax, c.shift, false);
            EXPECT_EQ(lowbit_blockwise_quantize_launch(
                          c.type(), c.n, c.blocksize, device_x.data<void>(),
                          device_book.data<float>(), device_q.data<uint8_t>(),
                          device_absmax.data<float>(), nullptr),
                      0);
            device_q.get(q);
            device_absmax.get(absmax);
            EXPECT_TRUE(same_bits(expected_absmax, absmax)) << "absmax";
            EXPECT_TRUE(same_bits(expected_q, q)) << "q";
        });
    }
}

TEST(CudaBlockwiseDequantize, Samples) {
    Random random(301);
    for (int i = 0; i < samples(60) && !HasFailure(); i++) {
        const Case c(random);
        SCOPED_TRACE(c.text());
        const Tensor book = codebook(c.kind, random), expected = Tensor::vector(c.dtype, c.n);
        Tensor q = Tensor::vector(LOWBIT_UINT8, c.n), out = Tensor::vector(c.dtype, c.n);
        Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, c.blocks());
        for (size_t k = 0; k < c.n; k++)
            q.at<uint8_t>(k, 0) = (uint8_t)random.bits();
        fill(absmax, random, c.values);
        ASSERT_EQ(lowbit_blockwise_dequantize(q, absmax, book, c.blocksize, expected, nullptr),
                  LOWBIT_OK);
        const DeviceTensor device_q(q, c.shift), device_absmax(absmax, c.shift),
            device_book(book, c.shift);
        in_every_order([&] {
            const DeviceTensor device_out(out, c.shift, false);
            EXPECT_EQ(lowbit_blockwise_dequantize_launch(
                          c.type(), c.n, c.blocksize, device_q.data<uint8_t>(),
                          device_absmax.data<float>(), device_book.data<float>(),
                          device_out.data<void>(), nullptr),
                      0);
            device_out.get(out);
            EXPECT_TRUE(same_bits(expected, out));
        });
    }
}

// What both launchers do with n zeros from `shift` bytes past a multiple of 256 on, counted.
template <typename Check>
void with_counters(lowbit_dtype dtype, size_t n, size_t shift, Check check) {
    Random random(302);
    const Tensor book = codebook(dynamic_signed, random),
                 absmax = Tensor::vector(LOWBIT_FLOAT32, n / 256);
    Tensor x = Tensor::vector(dtype, n), q = Tensor::vector(LOWBIT_UINT8, n);
    fill(x, random, ordinary);
    const DeviceTensor device_x(x, shift), device_q(q, shift), device_absmax(absmax, 0),
        device_book(book, 0);
    const auto type = (enum lowbit_float)dtype;
    emu::settings.count = true;
    for (int i = 0; i < 2; i++) {
        emu::reset();
        const int error =
            i == 0 ? lowbit_blockwise_quantize_launch(
                         type, n, 256, device_x.data<void>(), device_book.data<float>(),
                         device_q.data<uint8_t>(), device_absmax.data<float>(), nullptr)
                   : lowbit_blockwise_dequantize_launch(
                         type, n, 256, device_q.data<uint8_t>(), device_absmax.data<float>(),
                         device_book.data<float>(), device_x.data<void>(), nullptr);
        EXPECT_EQ(error, 0);
        check();
    }
    emu::settings.count = false;
    emu::reset();
}

TEST(CudaBlockwise, AccessesAreCoalesced) {
    for (lowbit_dtype dtype : float_dtypes) {
        SCOPED_TRACE(dtype_name(dtype));
        with_counters(dtype, 65536, 0, [] {
            EXPECT_EQ(emu::worst(emu::Space::global).ratio(), 1)
                << emu::worst(emu::Space::global).text();
        });
        // One sector more for each access by a warp.
        with_counters(dtype, 65536, 4,
                      [&] { EXPECT_LE(emu::total(emu::Space::global).ratio(), 1.75); });
    }
}

TEST(CudaBlockwise, NothingHappensWithoutElements) {
    EXPECT_EQ(
        lowbit_blockwise_quantize_launch(f32, 0, 256, nullptr, nullptr, nullptr, nullptr, nullptr),
        0);
    EXPECT_EQ(lowbit_blockwise_dequantize_launch(f32, 0, 256, nullptr, nullptr, nullptr, nullptr,
                                                 nullptr),
              0);
}

// Nobody can look at the codebook before the launch: it may be anything. Then codes may be too, and
// the buckets be written twice or not at all, but nothing outside of them is touched.
TEST(CudaBlockwiseQuantize, AnyCodebookIsHarmless) {
    Random random(303);
    Tensor x = Tensor::vector(LOWBIT_FLOAT32, 5000), book = Tensor::vector(LOWBIT_FLOAT32, 256);
    fill(x, random, any_bits);
    const Device<uint8_t> q(5000);
    const Device<float> absmax(20);
    for (int i = 0; i < 4; i++) {
        fill(book, random, i % 2 ? any_bits : ordinary);
        const DeviceTensor device_x(x, 0), device_book(book, 0);
        emu::reset();
        EXPECT_EQ(lowbit_blockwise_quantize_launch(f32, 5000, 256, device_x.data<void>(),
                                                   device_book.data<float>(), q.data(),
                                                   absmax.data(), nullptr),
                  0);
        for (const emu::Report &report : emu::reports())
            EXPECT_TRUE(report.bug == emu::Bug::shared_race ||
                        report.bug == emu::Bug::uninitialized_shared)
                << report.text();
    }
}

// More elements than 32 bits count. Only the blocks of threads that have the last of them run.
TEST(CudaBlockwise, ManyElements) {
    const size_t before = (size_t)1 << 32, n = 4100;
    Random random(304);
    const Tensor book = codebook(dynamic_signed, random);
    Tensor x = Tensor::vector(LOWBIT_BFLOAT16, n), y = Tensor::vector(LOWBIT_BFLOAT16, n);
    const Tensor q = Tensor::vector(LOWBIT_UINT8, n),
                 absmax = Tensor::vector(LOWBIT_FLOAT32, (n + 255) / 256);
    fill(x, random, ordinary);
    ASSERT_EQ(lowbit_blockwise_quantize(x, book, 256, q, absmax, nullptr), LOWBIT_OK);
    ASSERT_EQ(lowbit_blockwise_dequantize(q, absmax, book, 256, y, nullptr), LOWBIT_OK);

    const Device<uint16_t> device_x(before + n);
    const Device<uint8_t> device_q(before + n);
    const Device<float> device_absmax((before + n + 255) / 256);
    const DeviceTensor device_book(book, 0);
    EXPECT_CUDA(cudaMemcpy(device_x.data() + before, x->data, 2 * n, cudaMemcpyHostToDevice));
    emu::reset();
    emu::settings.multiprocessors = 1 << 22;
    emu::settings.first_block = before / 4096;
    EXPECT_EQ(lowbit_blockwise_quantize_launch(bf16, before + n, 256, device_x.data(),
                                               device_book.data<float>(), device_q.data(),
                                               device_absmax.data(), nullptr),
              0);
    std::vector<uint8_t> codes(n);
    EXPECT_CUDA(cudaMemcpy(codes.data(), device_q.data() + before, n, cudaMemcpyDeviceToHost));
    EXPECT_EQ(std::memcmp(codes.data(), q->data, n), 0);
    EXPECT_EQ(lowbit_blockwise_dequantize_launch(bf16, before + n, 256, device_q.data(),
                                                 device_absmax.data(), device_book.data<float>(),
                                                 device_x.data(), nullptr),
              0);
    EXPECT_CUDA(cudaMemcpy(x->data, device_x.data() + before, 2 * n, cudaMemcpyDeviceToHost));
    EXPECT_TRUE(same_bits(y, x));
    EXPECT_TRUE(emu::reports().empty()) << all_reports();
    emu::settings = emu::Settings();
}

} // namespace
