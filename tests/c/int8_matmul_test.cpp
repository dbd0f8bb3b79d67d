// SPDX-License-Identifier: MIT
// int8_matmul is exact at every instruction set and with every executor.

#include "samples.h"

namespace {

TEST(Int8Matmul, Samples) {
    Random random(10);
    for (int i = 0; i < samples(300) && !HasFailure(); i++) {
        const size_t m = i < 71 ? (size_t)i : random.size(1100);
        size_t n = random.size(1000), k = random.size(4100);
        cut(m, n, k, 1000000);
        const size_t gap = random.below(3) * 5;
        SCOPED_TRACE("M=" + std::to_string(m) + " N=" + std::to_string(n) +
                     " K=" + std::to_string(k));
        Tensor a(LOWBIT_INT8, m, k, gap), b(LOWBIT_INT8, n, k);
        Tensor out(LOWBIT_INT32, m, n, gap), expected(LOWBIT_INT32, m, n, gap);
        fill_codes(a, random, -128);
        fill_codes(b, random, -128);
        reference_int8_matmul(a, b, expected);
        expect_everywhere(
            [&](const Executor &executor) {
                out.clear();
                const Workspace workspace(
                    lowbit_int8_matmul_workspace_size(m, n, k, executor.max_tasks()));
                return lowbit_int8_matmul(a, b, out, executor, workspace.data(), workspace.size());
            },
            [&] { EXPECT_TRUE(same_bits(expected, out)); });
    }
}

// -128 * -128 * 131071 is the largest sum that int32 holds; 127 * -128 * 131071 the other way.
TEST(Int8Matmul, LargestSums) {
    const size_t k = LOWBIT_INT8_MATMUL_MAX_K;
    for (size_t m : {1, 4, 9, 33})
        for (int value : {-128, 127}) {
            Tensor a(LOWBIT_INT8, m, k), b(LOWBIT_INT8, 5, k), out(LOWBIT_INT32, m, 5);
            std::memset(a->data, value, m * k);
            std::memset(b->data, -128, 5 * k);
            expect_everywhere(
                [&](const Executor &executor) {
                    out.clear();
                    const Workspace workspace(
                        lowbit_int8_matmul_workspace_size(m, 5, k, executor.max_tasks()));
                    return lowbit_int8_matmul(a, b, out, executor, workspace.data(),
                                              workspace.size());
                },
                [&] {
                    for (size_t i = 0; i < m; i++)
                        for (size_t n = 0; n < 5; n++)
                            EXPECT_EQ(out.at<int32_t>(i, n), value * -128 * (int32_t)k);
                },
                serially);
        }
}

} // namespace
