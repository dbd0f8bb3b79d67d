// SPDX-License-Identifier: MIT
// The micro-kernels of the blockwise family: each equals the reference in bits.

#include "codebooks.h"
#include "ukernel_testing.h"

#include "../../ops/blockwise_codebook.h"

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA)                                                  \
    LOWBIT_DECLARE_##isa(lowbit_blockwise_quantize_ukernel,                                        \
                         lowbit_blockwise_quantize_ukernel_##type##__##isa)
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA)                                                \
    LOWBIT_DECLARE_##isa(lowbit_blockwise_dequantize_ukernel,                                      \
                         lowbit_blockwise_dequantize_ukernel_##type##__##isa)
#include "../../kernels/cpu/blockwise/blockwise.inc"
}
#endif

namespace {

struct Rows {
    std::vector<Variant<lowbit_blockwise_quantize_ukernel>> quantize;
    std::vector<Variant<lowbit_blockwise_dequantize_ukernel>> dequantize;

    Rows() {
#define LOWBIT_ADD(signature, type, isa, ISA)                                                      \
    add_variants(signature, #type "__" #isa, ISA,                                                  \
                 lowbit_blockwise_##signature##_ukernel_##type##__##isa,                           \
                 LOWBIT_EMULATED_##isa(lowbit_blockwise_##signature##_ukernel_##type##__##isa));
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA) LOWBIT_ADD(quantize, type, isa, ISA)
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA) LOWBIT_ADD(dequantize, type, isa, ISA)
#include "../../kernels/cpu/blockwise/blockwise.inc"
    }
};

const Rows &rows() {
    static const Rows rows;
    return rows;
}

lowbit_dtype dtype_of(const std::string &name) {
    return name[0] == 'b' ? LOWBIT_BFLOAT16 : name[1] == '3' ? LOWBIT_FLOAT32 : LOWBIT_FLOAT16;
}

const GuardedBuffer::Side sides[] = {GuardedBuffer::at_end, GuardedBuffer::at_start};
const size_t blocksizes[] = {32, 64, 256, 1024, 4096};

template <typename T> lowbit_tensor view(const Array<T> &array, lowbit_dtype dtype) {
    return {array.data(), dtype, array.size(), 1, 1};
}

lowbit_tensor view(const Floats &floats, lowbit_dtype dtype) {
    return {floats.data(), dtype, floats.size(), 1, 1};
}

class BlockwiseQuantize : public UkernelTest<Variant<lowbit_blockwise_quantize_ukernel>> {
  protected:
    const lowbit_dtype dtype = dtype_of(GetParam().name);

    void expect_equals_reference(const Floats &x, const Tensor &codebook,
                                 const lowbit_blockwise_encoder &encoder, size_t blocksize,
                                 GuardedBuffer::Side side) {
        const size_t n = x.size(), blocks = (n + blocksize - 1) / blocksize;
        const Array<uint8_t> want(n, side), have(n, side);
        const Array<float> want_absmax(blocks, side), have_absmax(blocks, side);
        const lowbit_tensor x_view = view(x, dtype), q_view = view(want, LOWBIT_UINT8),
                            absmax_view = view(want_absmax, LOWBIT_FLOAT32);
        reference_blockwise_quantize(&x_view, codebook, blocksize, &q_view, &absmax_view);
        GetParam().run(n, blocksize, x.data(), &encoder, have.data(), have_absmax.data());
        ASSERT_TRUE(same_bits(want_absmax, have_absmax)) << "absmax, n " << n;
        ASSERT_TRUE(same_bits(want, have)) << "q, n " << n << ", blocks of " << blocksize;
    }
};

TEST_P(BlockwiseQuantize, EqualsReference) {
    Random random(210);
    int kind = 0;
    for (size_t n : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                kind = (kind + 1) % codebook_kinds;
                SCOPED_TRACE(codebook_name(kind));
                const Tensor values = codebook(kind, random);
                const Array<lowbit_blockwise_encoder> encoder(1, side);
                lowbit_blockwise_encoder_init((const float *)values->data, encoder.data());
                const size_t blocksize = random.pick(blocksizes);
                Floats x((lowbit_float)dtype, n, side);
                fill(x, random, wild);
                expect_equals_reference(x, values, encoder[0], blocksize, side);
                if (HasFailure())
                    return;
            }
}

// Every upper half of a float, with lower halves around the thresholds in it.
TEST_P(BlockwiseQuantize, FindsEveryThreshold) {
    Random random(211);
    std::vector<Tensor> codebooks;
    for (int kind = 0; kind < codebook_kinds; kind++)
        codebooks.push_back(codebook(kind, random));
    // One threshold alone: in the first and last buckets and beside them, and beyond.
    for (float threshold : {0.0f,
                            0x1p-149f,
                            0x1p-127f,
                            0x1p-25f,
                            0x1.fffffep-25f,
                            0x1p-24f,
                            0x1.01p-24f,
                            0x1.01fffep-24f,
                            0x1.02p-24f,
                            0x1.030002p-24f,
                            0x1p-23f,
                            0x1.234568p-10f,
                            0.5f,
                            0x1.fffffep-1f,
                            1.0f,
                            0x1.000002p0f,
                            0x1.01p0f,
                            0x1.02p0f,
                            2.0f,
                            0x1p120f})
        for (float sign : {1.0f, -1.0f}) {
            Tensor two = Tensor::vector(LOWBIT_FLOAT32, 256);
            for (size_t i = 0; i < 256; i++)
                two.set(i, 0, (i < 100) == (sign > 0) ? 0 : 2 * sign * threshold);
            codebooks.push_back(std::move(two));
        }
    for (const Tensor &values : codebooks) {
        const Array<lowbit_blockwise_encoder> encoder(1);
        lowbit_blockwise_encoder_init((const float *)values->data, encoder.data());
        std::vector<float> near = {1, -1};
        for (uint32_t upper = 0; upper <= 0x3f80; upper++)
            for (uint32_t sign : {0u, 0x80000000u}) {
                const uint32_t lower = upper < 0x3f80 ? (uint32_t)random.below(0x10000) : 0;
                near.push_back(lowbit_float_from_bits(sign | upper << 16 | lower));
            }
        for (size_t i = 0; i < 255; i++) {
            const float threshold = encoder[0].threshold[i];
            for (float v : {std::nextafter(threshold, -INFINITY), threshold,
                            std::nextafter(threshold, INFINITY), -threshold})
                if (std::fabs(v) <= 1)
                    near.push_back(v);
        }
        const size_t blocksize = 4096;
        for (size_t i = 0; i < near.size(); i += blocksize - 1) {
            const size_t n = std::min(blocksize, near.size() - i + 1);
            Floats x((lowbit_float)dtype, n);
            x.set(0, 1); // absmax
            for (size_t k = 1; k < n; k++)
                x.set(k, near[i + k - 1]);
            expect_equals_reference(x, values, encoder[0], blocksize, GuardedBuffer::at_end);
            if (HasFailure())
                return;
        }
    }
}

// 1 / absmax is subnormal then, and x / absmax may come out above 1.
TEST_P(BlockwiseQuantize, HugeBlocks) {
    Random random(214);
    for (float threshold : {0x1.fffffep-1f, 1.0f, 0x1.000002p0f}) {
        Tensor values = Tensor::vector(LOWBIT_FLOAT32, 256);
        for (size_t i = 0; i < 256; i++)
            values.set(i, 0, i < 100 ? 0 : 2 * threshold);
        lowbit_blockwise_encoder encoder;
        lowbit_blockwise_encoder_init((const float *)values->data, &encoder);
        Floats x((lowbit_float)dtype, 3200);
        for (size_t i = 0; i < x.size(); i++)
            x.set(i, std::ldexp(random.uniform(1, 2), dtype == LOWBIT_FLOAT16 ? 15 : 127));
        expect_equals_reference(x, values, encoder, 32, GuardedBuffer::at_end);
    }
}

INSTANTIATE_TEST_SUITE_P(, BlockwiseQuantize, testing::ValuesIn(rows().quantize), VariantName());

// The lines fit the dynamic maps, also as others compute them, and nothing that is much unlike.
TEST(BlockwiseEncoder, FindsTheDecadesOfTheDynamicMap) {
    Random random(215);
    for (int kind = 0; kind < codebook_kinds; kind++) {
        const Tensor values = codebook(kind, random);
        lowbit_blockwise_encoder encoder;
        lowbit_blockwise_encoder_init((const float *)values->data, &encoder);
        const bool dynamic = kind == dynamic_signed || kind == dynamic_unsigned;
        EXPECT_EQ(encoder.has_decades, dynamic) << codebook_name(kind);
        if (!dynamic)
            continue;
        for (size_t code : {100, 200, 254}) { // its magnitude changes in both signs
            for (bool far : {false, true}) {
                const float value = values.get(code, 0);
                const float changed = far ? value * 1.001f : std::nextafter(value, 1.0f);
                Tensor other = Tensor::vector(LOWBIT_FLOAT32, 256);
                for (size_t i = 0; i < 256; i++) {
                    const float x = values.get(i, 0);
                    other.set(i, 0,
                              std::fabs(x) == std::fabs(value) ? std::copysign(changed, x) : x);
                }
                lowbit_blockwise_encoder_init((const float *)other->data, &encoder);
                EXPECT_EQ(encoder.has_decades, !far) << codebook_name(kind) << " " << code;
            }
        }
    }
}

// The tables of the codebooks that are used most decide at once.
TEST(BlockwiseEncoder, IsDirectForCommonCodebooks) {
    Random random(212);
    for (int kind : {dynamic_signed, dynamic_unsigned, one_value, padded}) {
        lowbit_blockwise_encoder encoder;
        lowbit_blockwise_encoder_init((const float *)codebook(kind, random)->data, &encoder);
        EXPECT_TRUE(encoder.direct) << codebook_name(kind);
    }
}

class BlockwiseDequantize : public UkernelTest<Variant<lowbit_blockwise_dequantize_ukernel>> {};

TEST_P(BlockwiseDequantize, EqualsReference) {
    const lowbit_dtype dtype = dtype_of(GetParam().name);
    Random random(213);
    for (size_t n : lengths())
        for (GuardedBuffer::Side side : sides)
            for (bool wild : {false, true}) {
                const size_t blocksize = random.pick(blocksizes);
                const Array<uint8_t> q(n, side);
                for (size_t i = 0; i < n; i++)
                    q[i] = (uint8_t)random.bits();
                const Array<float> absmax((n + blocksize - 1) / blocksize, side), values(256, side);
                fill(absmax, random, wild);
                fill(values, random, wild);
                const Floats want((lowbit_float)dtype, n, side), have((lowbit_float)dtype, n, side);
                const lowbit_tensor q_view = view(q, LOWBIT_UINT8), y_view = view(want, dtype),
                                    absmax_view = view(absmax, LOWBIT_FLOAT32),
                                    values_view = view(values, LOWBIT_FLOAT32);
                reference_blockwise_dequantize(&q_view, &absmax_view, &values_view, blocksize,
                                               &y_view);
                const Array<lowbit_blockwise_decoder> decoder(1, side);
                lowbit_blockwise_decoder_init(values.data(), decoder.data());
                GetParam().run(n, blocksize, q.data(), absmax.data(), decoder.data(), have.data());
                ASSERT_TRUE(same_bits(want.bytes(), have.bytes()))
                    << "n " << n << ", blocks of " << blocksize;
            }
}

// Every code, in whole vectors and in the tail behind them.
TEST_P(BlockwiseDequantize, ReadsEveryValue) {
    const lowbit_dtype dtype = dtype_of(GetParam().name);
    const Array<uint8_t> q(3 * 256 + 7);
    const Array<float> absmax((q.size() + 31) / 32), values(256);
    for (size_t i = 0; i < q.size(); i++)
        q[i] = (uint8_t)(i * 5);
    for (size_t i = 0; i < absmax.size(); i++)
        absmax[i] = std::ldexp(1.0f, (int)(i % 3));
    for (size_t i = 0; i < 256; i++)
        values[i] = (float)i - 128;
    lowbit_blockwise_decoder decoder;
    lowbit_blockwise_decoder_init(values.data(), &decoder);
    const Floats y((lowbit_float)dtype, q.size());
    GetParam().run(q.size(), 32, q.data(), absmax.data(), &decoder, y.data());
    for (size_t i = 0; i < q.size(); i++)
        ASSERT_EQ(y.get(i), ((float)q[i] - 128) * absmax[i / 32]) << i;
}

INSTANTIATE_TEST_SUITE_P(, BlockwiseDequantize, testing::ValuesIn(rows().dequantize),
                         VariantName());

} // namespace
