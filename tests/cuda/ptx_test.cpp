// SPDX-License-Identifier: MIT
// The instructions of ptx.cuh, put together to products of matrices that plain loops can check.

#include "ptx_kernels.h"
#include "testing.h"

#include "../../kernels/cpu/common/floats.h"
#include "../c/samples.h"

namespace {

TEST(Ptx, ProductOfInt8) {
    in_every_order([] {
        Random random(1);
        std::vector<int8_t> a(16 * 32), b(16 * 32);
        for (auto *values : {&a, &b})
            for (int8_t &value : *values)
                value = (int8_t)random.bits();
        const Device<int8_t> device_a(a), device_b(b);
        const Device<int32_t> device_d(16 * 16);
        ASSERT_CUDA(product_s8(device_a.data(), device_b.data(), device_d.data()));
        const std::vector<int32_t> d = device_d.get();
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                int32_t expected = 0;
                for (int k = 0; k < 32; k++)
                    expected += a[32 * i + k] * b[32 * j + k];
                EXPECT_EQ(d[16 * i + j], expected) << i << ", " << j;
            }
    });
}

// Small whole numbers: every sum is exact, whatever its order.
template <typename Product, typename Convert>
void expect_product(Product product, Convert to_half) {
    in_every_order([&] {
        Random random(2);
        std::vector<float> a(16 * 16), b(16 * 16);
        std::vector<uint16_t> half_a, half_b;
        for (float &value : a)
            half_a.push_back(to_half(value = (float)random.below(257) - 128));
        for (float &value : b)
            half_b.push_back(to_half(value = (float)random.below(257) - 128));
        const Device<uint16_t> device_a(half_a), device_b(half_b);
        const Device<float> device_d(16 * 16);
        ASSERT_CUDA(product(device_a.data(), device_b.data(), device_d.data()));
        const std::vector<float> d = device_d.get();
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                float expected = 0;
                for (int k = 0; k < 16; k++)
                    expected += a[16 * i + k] * b[16 * k + j];
                EXPECT_EQ(d[16 * i + j], expected) << i << ", " << j;
            }
    });
}

TEST(Ptx, ProductOfFp16) {
    expect_product(product_f16, lowbit_f32_to_f16);
}
TEST(Ptx, ProductOfBf16) {
    expect_product(product_bf16, lowbit_f32_to_bf16);
}

} // namespace
