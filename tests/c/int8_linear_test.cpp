// SPDX-License-Identifier: MIT
// int8_linear equals the reference in bits: at every instruction set, with every executor, in any
// floating-point environment, over sampled shapes, dtypes, values and outliers.

#include "int8_testing.h"

namespace {

lowbit_status run_linear(const lowbit_int8_linear_args &args, const Executor &executor) {
    const Workspace workspace(lowbit_int8_linear_workspace_size(
        args.x->rows, args.weight->rows, args.x->cols, executor.max_tasks()));
    return lowbit_int8_linear(&args, executor, workspace.data(), workspace.size());
}

void check_linear(const LinearCase &c, Random &random) {
    SCOPED_TRACE(c.text());
    LinearData d(c, random);
    expect_everywhere(
        [&](const Executor &executor) {
            d.y.clear();
            return run_linear(d.args, executor);
        },
        [&] { EXPECT_TRUE(same_bits(d.expected, d.y)); });
}

TEST(Int8Linear, EveryNumberOfRows) {
    Random random(1);
    for (int pass = 0; pass < samples(3); pass++)
        for (size_t m = 0; m <= 70 && !HasFailure(); m++) {
            size_t n = random.size(2000), k = random.size(2000);
            cut(m, n, k, 1000000);
            check_linear(LinearCase::random(random, m, n, k), random);
        }
}

// Enough work for every task that an executor offers.
TEST(Int8Linear, ManyTasks) {
    Random random(2);
    for (int i = 0; i < samples(4) && !HasFailure(); i++) {
        const size_t m = 40 + random.below(60);
        LinearCase c =
            LinearCase::random(random, m, 500 + random.below(300), 400 + random.below(400));
        c.outliers = i % 2 ? columns : few;
        check_linear(c, random);
    }
}

// Rows of x are walked in blocks of 1024.
TEST(Int8Linear, ManyRows) {
    Random random(3);
    for (size_t m : {1023, 1024, 1025, 1056, 1100, 2049}) {
        if (HasFailure())
            break;
        LinearCase c = LinearCase::random(random, m, 1 + random.below(80), 1 + random.below(100));
        c.values = ordinary;
        check_linear(c, random);
    }
}

// Outliers are summed in blocks of 1024 columns and multiplied in passes.
TEST(Int8Linear, ManyColumns) {
    Random random(4);
    for (size_t k : {1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 5000})
        for (Outliers outliers : {none, columns, few, many, all}) {
            if (HasFailure())
                return;
            LinearCase c =
                LinearCase::random(random, 1 + random.below(20), 1 + random.below(70), k);
            c.threshold = 6;
            c.outliers = outliers;
            check_linear(c, random);
        }
}

// int32 holds the sum of the largest products up to K = LOWBIT_INT8_LINEAR_MAX_K.
TEST(Int8Linear, LargestSums) {
    Random random(5);
    const size_t n = 3, k = LOWBIT_INT8_LINEAR_MAX_K;
    Tensor weight(LOWBIT_INT8, n, k);
    Tensor absmax = Tensor::vector(LOWBIT_FLOAT32, n), offset = Tensor::vector(LOWBIT_FLOAT32, n);
    fill_scales(absmax, offset, random, ordinary);
    for (size_t row = 0; row < n; row++)
        std::memset(&weight.at<int8_t>(row, 0), row % 2 ? -127 : 127, k);
    for (size_t m : {1, 2, 5, 9, 17, 33}) {
        Tensor x(LOWBIT_FLOAT32, m, k), y(LOWBIT_FLOAT32, m, n), expected(LOWBIT_FLOAT32, m, n);
        for (size_t row = 0; row < m; row++)
            for (size_t col = 0; col < k; col++)
                x.set(row, col, row % 2 ? -1.0f : 1.0f);
        lowbit_int8_linear_args args{x, weight, absmax, offset, nullptr, 0, expected};
        reference_int8_linear(&args);
        args.y = y;
        expect_everywhere(
            [&](const Executor &executor) {
                y.clear();
                return run_linear(args, executor);
            },
            [&] { EXPECT_TRUE(same_bits(expected, y)); }, serially);
    }
}

// Rows in any company: alone, in slices and in another order they give the same bits. The kernels
// differ with the number of rows, and outlier lists are shared by neighbours.
TEST(Int8Linear, RowsDoNotDependOnEachOther) {
    Random random(6);
    for (int i = 0; i < samples(12) && !HasFailure(); i++) {
        LinearCase c =
            LinearCase::random(random, 61, 40 + random.below(60), 100 + random.below(1500));
        c.threshold = 6;
        c.outliers = i % 2 ? few : columns;
        SCOPED_TRACE(c.text());
        LinearData d(c, random);
        Executor serial(ways[0]);
        ASSERT_EQ(run_linear(d.args, serial), LOWBIT_OK);
        ASSERT_TRUE(same_bits(d.expected, d.y));

        d.y.clear();
        for (size_t first = 0; first < c.m;) {
            const size_t rows = std::min(random.size(20), c.m - first);
            const lowbit_tensor x = d.x.slice(first, rows), y = d.y.slice(first, rows);
            lowbit_int8_linear_args args = d.args;
            args.x = &x;
            args.y = &y;
            ASSERT_EQ(run_linear(args, serial), LOWBIT_OK);
            first += rows;
        }
        EXPECT_TRUE(same_bits(d.expected, d.y)) << "in slices";

        Tensor x(c.x_dtype, c.m, c.k), y(c.y_dtype, c.m, c.n, c.y_gap);
        std::vector<size_t> order(c.m);
        for (size_t row = 0; row < c.m; row++) {
            order[row] = row;
            std::swap(order[row], order[random.below(row + 1)]);
        }
        const size_t x_row = c.k * dtype_size(c.x_dtype), y_row = c.n * dtype_size(c.y_dtype);
        for (size_t row = 0; row < c.m; row++)
            std::memcpy(x.slice(row, 1).data, d.x.slice(order[row], 1).data, x_row);
        lowbit_int8_linear_args args = d.args;
        args.x = x;
        args.y = y;
        ASSERT_EQ(run_linear(args, serial), LOWBIT_OK);
        d.y.clear();
        for (size_t row = 0; row < c.m; row++)
            std::memcpy(d.y.slice(order[row], 1).data, y.slice(row, 1).data, y_row);
        EXPECT_TRUE(same_bits(d.expected, d.y)) << "in another order";
    }
}

// Dequantized weights that are infinite, in columns where some rows of x have an outlier and their
// neighbours none: infinity times an outlier, and no zero times infinity.
TEST(Int8Linear, WeightsThatOverflow) {
    Random random(9);
    for (int i = 0; i < samples(40) && !HasFailure(); i++) {
        LinearCase c =
            LinearCase::random(random, random.size(40), random.size(70), random.size(300));
        c.threshold = 6;
        c.values = ordinary;
        c.scales = huge;
        c.outliers = i % 2 ? few : percent;
        c.scale_dtype = i % 8 ? LOWBIT_FLOAT32 : LOWBIT_FLOAT16; // in float16 these are infinite
        check_linear(c, random);
    }
}

TEST(Int8Linear, NothingToSum) {
    Random random(7);
    for (size_t m : {0, 1, 5, 20})
        for (size_t n : {0, 1, 70})
            for (size_t k : {0, 1}) {
                LinearCase c = LinearCase::random(random, m, n, k);
                check_linear(c, random);
            }
}

TEST(Int8Linear, WorkspaceGrowsWithRowsAndTasksOnly) {
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        const auto size = lowbit_int8_linear_workspace_size;
        EXPECT_EQ(size(64, 1000, 4096, 2), size(64, 100000, 4096, 2));
        EXPECT_EQ(size(1024, 64, 4096, 2), size(100000, 64, 4096, 2));
        EXPECT_LT(size(64, 64, 4096, 2), size(64, 64, 4096, 3));
        // A code and an entry of the outlier list for each element, panels for each task.
        EXPECT_LE(size(1024, 4096, 4096, 2), 1024 * 4096 * 8 + 2 * 2000000);
        EXPECT_LE(size(1, 4096, 4096, 2), 2 * 1000000);
    }
    lowbit_cpu_isa_cap(nullptr);
}

// Where there is work for seven tasks, seven run.
TEST(Int8Linear, UsesTheTasks) {
    Random random(8);
    LinearCase c = LinearCase::random(random, 256, 1024, 512);
    c.outliers = columns;
    const LinearData d(c, random);
    const Way seven{"", 7, true, false};
    Executor executor(seven);
    ASSERT_EQ(run_linear(d.args, executor), LOWBIT_OK);
    EXPECT_EQ(executor.most_tasks, 7u);
}

} // namespace
