// SPDX-License-Identifier: MIT
// lut4_linear and lut4_linear_grad_input are within fp32's error of float64, at every instruction set.
// At each of them the bits do not depend on the executor, on the floating-point environment of the
// caller, or on the order of the rows.

#include "lut4_testing.h"

namespace {

// One product of x [m, r] with a weight, to y [m, c]: a forward one or a gradient.
struct Product {
    bool forward;
    Weight4 w;
    lowbit_dtype x_dtype, y_dtype, bias_dtype;
    bool with_bias, special_rows;
    size_t x_gap, y_gap;
    Tensor x, bias, y;

    Product(Random &random, bool forward, size_t m, size_t n, size_t k, size_t blocksize,
            bool specials = false)
        : forward(forward),
          w(random, n, k, blocksize, (int)random.below(codebook16_kinds), random.one_in(2), false),
          x_dtype(random.pick(float_dtypes)), y_dtype(random.pick(float_dtypes)),
          bias_dtype(random.pick(float_dtypes)), with_bias(forward && random.one_in(2)),
          special_rows(specials), x_gap(random.one_in(3) ? random.below(70) : 0),
          y_gap(random.one_in(3) ? random.below(70) : 0), x(x_dtype, m, forward ? k : n, x_gap),
          bias(Tensor::vector(bias_dtype, n)), y(y_dtype, m, forward ? n : k, y_gap) {
        fill(x, random, ordinary);
        fill(bias, random, ordinary);
        const float special[] = {NAN, INFINITY, -INFINITY};
        if (specials)
            for (size_t row = 1; row < m; row += 3)
                for (size_t i = random.below(x->cols); i < x->cols; i += random.size(100))
                    x.set(row, i, random.pick(special));
        for (Tensor *input : {&x, &bias})
            input->make_read_only();
    }

    size_t m() const { return x->rows; }

    std::string text() const {
        return std::string(forward ? "linear" : "grad_input") + " M=" + std::to_string(m()) +
               " weight " + w.text() + " x=" + dtype_name(x_dtype) + " y=" + dtype_name(y_dtype) +
               " bias=" + (with_bias ? dtype_name(bias_dtype) : "null") +
               " gaps=" + std::to_string(x_gap) + "," + std::to_string(y_gap);
    }

    size_t workspace_size(size_t max_tasks) const {
        return (forward ? lowbit_lut4_linear_workspace_size
                        : lowbit_lut4_linear_grad_input_workspace_size)(m(), w.n, w.k, max_tasks);
    }

    lowbit_status run(const Executor &executor, const lowbit_tensor *from,
                      const lowbit_tensor *to) const {
        const Workspace workspace(workspace_size(executor.max_tasks()));
        if (forward) {
            const lowbit_lut4_linear_args args{from, w, or_null(with_bias, bias), to};
            return lowbit_lut4_linear(&args, executor, workspace.data(), workspace.size());
        }
        const lowbit_lut4_linear_grad_input_args args{from, w, to};
        return lowbit_lut4_linear_grad_input(&args, executor, workspace.data(), workspace.size());
    }

    // Where products are those of bf16 numbers: only for bfloat16 x.
    bool in_bf16() const {
        if (!forward)
            return x_dtype == LOWBIT_BFLOAT16 && lowbit_cpu_isa() & LOWBIT_ISA_AVX512BF16;
        return lowbit_lut4_linear_ukernel(x_dtype, m(), w.k, w.blocksize)[0] == 'b';
    }

    // One rounding for each term and a few more, those of its product with a scale and of the last
    // sums; in bf16 a product or sum below 2^-126 is lost. Then that of the result.
    void expect_close() const {
        const bool bf16 = in_bf16();
        const lowbit_lut4_linear_args args{x, w, or_null(with_bias, bias), y};
        const lowbit_lut4_linear_grad_input_args grad_args{x, w, y};
        const auto terms = (double)(x->cols + 16);
        for (size_t row = 0; row < y->rows; row++)
            for (size_t col = 0; col < y->cols; col++) {
                const reference_sum sum =
                    forward ? reference_lut4_linear(&args, row, col, bf16)
                            : reference_lut4_linear_grad_input(&grad_args, row, col, bf16);
                const float value = y.get(row, col);
                const double bound = terms * (0x1p-24 * sum.magnitude + 0x1p-118);
                if (!std::isfinite(sum.value)) {
                    ASSERT_EQ(std::isnan(sum.value), std::isnan(value)) << "row " << row;
                    ASSERT_FALSE(std::isfinite(value)) << "row " << row << " column " << col;
                } else if (std::fabs(sum.value) + bound < 65000) {
                    ASSERT_LE(std::fabs(value - sum.value),
                              bound + rounding(y_dtype, std::fabs(sum.value) + bound))
                        << "row " << row << " column " << col;
                }
            }
    }
};

void check(const Product &p) {
    SCOPED_TRACE(p.text());
    Tensor first(p.y_dtype, p.y->rows, p.y->cols, p.y_gap);
    uint32_t level_of_first = 0;
    expect_everywhere(
        [&](const Executor &executor) {
            std::memset(p.y.buffer().data(), 0xa5, p.y.buffer().size());
            return p.run(executor, p.x, p.y);
        },
        [&] {
            if (level_of_first == lowbit_cpu_isa()) {
                EXPECT_TRUE(same_bits(first, p.y)) << "not the first executor's bits";
                return;
            }
            level_of_first = lowbit_cpu_isa();
            first.copy(p.y);
            const auto *bytes = p.y.buffer().as<unsigned char>();
            const size_t row_bytes = p.y->stride * dtype_size(p.y_dtype);
            for (size_t i = 0; i < p.y.buffer().size(); i++)
                if (i % row_bytes >= p.y->cols * dtype_size(p.y_dtype)) {
                    ASSERT_EQ(bytes[i], 0xa5) << "wrote between rows";
                }
            p.expect_close();
        });
}

// Sizes where the weight can be read in place and where a block straddles rows.
size_t any_k(Random &random, size_t most, size_t blocksize) {
    const size_t k = random.size(most);
    return random.one_in(2) ? std::max(k / blocksize, (size_t)1) * blocksize : k;
}

// Across the crossovers of the kernels: from 8 rows on in the scalar one and 48 in others come panels.
void every_number_of_rows(bool forward, uint64_t stream) {
    Random random(stream);
    for (int pass = 0; pass < samples(2); pass++)
        for (size_t m = 0; m <= 50 && !testing::Test::HasFailure(); m++) {
            const size_t blocksize = random.pick(blocksizes16);
            size_t n = random.size(400), k = any_k(random, 1500, blocksize);
            while (m * n * k > 300000 && n > 1)
                n /= 2;
            check(Product(random, forward, m, n, k, blocksize));
        }
}

TEST(Lut4Linear, EveryNumberOfRows) {
    every_number_of_rows(true, 320);
}
TEST(Lut4LinearGradInput, EveryNumberOfRows) {
    every_number_of_rows(false, 321);
}

// Rows of x are walked in blocks of 1024.
TEST(Lut4Linear, ManyRows) {
    Random random(322);
    for (size_t m : {1023, 1024, 1025})
        if (!HasFailure())
            check(Product(random, true, m, 1 + random.below(30), 1 + random.below(40), 32));
}
TEST(Lut4LinearGradInput, ManyRows) {
    Random random(323);
    for (size_t m : {1023, 1024, 1025})
        if (!HasFailure())
            check(Product(random, false, m, 1 + random.below(30), 1 + random.below(40), 32));
}

// Many columns: panels of 256 and 512, gemms whose rows of x do not fit a cache, every blocksize.
TEST(Lut4Linear, ManyColumns) {
    Random random(324);
    for (size_t blocksize : {32, 64, 128, 256, 512, 1024, 2048, 4096})
        for (size_t m : {1, 3, 9, 16, 17})
            if (!HasFailure())
                check(Product(random, true, m, 1 + random.below(20),
                              std::max((size_t)4096 + 3 * 32, blocksize) / blocksize * blocksize,
                              blocksize));
    for (size_t k : {255, 256, 257, 511, 512, 513, 1025})
        if (!HasFailure())
            check(Product(random, true, 1 + random.below(40), 1 + random.below(40), k, 64));
}
TEST(Lut4LinearGradInput, ManyWeightRows) {
    Random random(325);
    for (size_t n : {255, 256, 257, 511, 512, 513, 4097})
        if (!HasFailure())
            check(Product(random, false, 1 + random.below(20), n, 1 + random.below(60), 64));
    for (size_t k : {255, 256, 257, 511, 512, 513, 1025})
        if (!HasFailure())
            check(Product(random, false, 1 + random.below(20), 1 + random.below(20), k, 64));
}

// Enough work for every task that an executor offers.
TEST(Lut4Linear, ManyTasks) {
    Random random(326);
    for (size_t m : {1, 16, 33})
        for (bool forward : {true, false})
            if (!HasFailure()) {
                const Product p(random, forward, m, m == 1 ? 1000 : 200, 512, 64);
                const Way seven{"", 7, true, false};
                Executor executor(seven);
                check(p);
                ASSERT_EQ(p.run(executor, p.x, p.y), LOWBIT_OK);
                EXPECT_GT(executor.most_tasks, 1u) << p.text();
            }
}

TEST(Lut4Linear, NothingToSum) {
    Random random(327);
    for (size_t m : {0, 1, 9, 20})
        for (size_t n : {0, 1, 33})
            for (size_t k : {0, 1})
                for (bool forward : {true, false})
                    if (!HasFailure())
                        check(Product(random, forward, m, n, k, 32));
}

// In another order rows give the same bits, and a row that is not finite touches no other.
TEST(Lut4Linear, RowsDoNotDependOnEachOther) {
    Random random(328);
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (bool forward : {true, false})
            for (size_t m = 2; m <= 50 && !HasFailure(); m++) {
                const size_t blocksize = random.pick(blocksizes16);
                const Product p(random, forward, m, 1 + random.below(40),
                                any_k(random, 600, blocksize), blocksize, m % 2);
                SCOPED_TRACE(std::string(level) + ", " + p.text());
                const Executor serial(ways[0]);
                ASSERT_EQ(p.run(serial, p.x, p.y), LOWBIT_OK);
                p.expect_close();

                const size_t turn = 1 + random.below(m - 1);
                const Tensor x(p.x_dtype, m, p.x->cols), y(p.y_dtype, m, p.y->cols);
                const auto row_of = [&](size_t row) { return (row + turn) % m; };
                const size_t x_row = x->cols * dtype_size(p.x_dtype);
                const size_t y_row = y->cols * dtype_size(p.y_dtype);
                for (size_t row = 0; row < m; row++)
                    std::memcpy(x.slice(row, 1).data, p.x.slice(row_of(row), 1).data, x_row);
                ASSERT_EQ(p.run(serial, x, y), LOWBIT_OK);
                for (size_t row = 0; row < m; row++)
                    ASSERT_EQ(
                        std::memcmp(y.slice(row, 1).data, p.y.slice(row_of(row), 1).data, y_row), 0)
                        << "row " << row_of(row) << " in place " << row;
            }
    }
    lowbit_cpu_isa_cap(nullptr);
}

// 96 columns are one and a half units of 64 elements, or three quarters of one of 128.
TEST(Lut4Linear, InfiniteScaleStaysInItsBlock) {
    constexpr size_t n = 2, k = 96, blocksize = 32, most = 5;
    uint8_t codes[n * k / 2];
    float codebook[16] = {-1}, scales[n * k / blocksize] = {1, 1, 1, 1, 1, INFINITY}, x[most * k];
    codebook[15] = 1;
    std::fill(std::begin(codes), std::end(codes), (uint8_t)0xff);
    std::fill(std::begin(x), std::end(x), 1.0f);
    const lowbit_tensor packed{codes, LOWBIT_UINT8, sizeof codes, 1, 1};
    const lowbit_tensor absmax{scales, LOWBIT_FLOAT32, n * k / blocksize, 1, 1};
    const lowbit_tensor values{codebook, LOWBIT_FLOAT32, 16, 1, 1};
    const lowbit_lut4_weight weight{&packed, &absmax, &values, blocksize,
                                    nullptr, nullptr, nullptr};
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (size_t m = 1; m <= most; m++) {
            float y[most * n];
            const lowbit_tensor from{x, LOWBIT_FLOAT32, m, k, k}, to{y, LOWBIT_FLOAT32, m, n, n};
            const lowbit_lut4_linear_args args{&from, weight, nullptr, &to};
            const Workspace workspace(lowbit_lut4_linear_workspace_size(m, n, k, 1));
            ASSERT_EQ(lowbit_lut4_linear(&args, nullptr, workspace.data(), workspace.size()),
                      LOWBIT_OK);
            for (size_t row = 0; row < m; row++) {
                EXPECT_EQ(y[row * n], 96.0f) << level << " M=" << m;
                EXPECT_EQ(y[row * n + 1], INFINITY) << level << " M=" << m;
            }
        }
    }
    lowbit_cpu_isa_cap(nullptr);
}

TEST(Lut4Linear, WorkspaceGrowsWithRowsAndTasksOnly) {
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        const auto linear = lowbit_lut4_linear_workspace_size;
        const auto grad_input = lowbit_lut4_linear_grad_input_workspace_size;
        EXPECT_EQ(grad_input(64, 4096, 1000, 2), grad_input(64, 4096, 100000, 2));
        for (const auto &size : {linear, grad_input}) {
            EXPECT_EQ(size(1024, 4096, 4096, 2), size(100000, 4096, 4096, 2));
            EXPECT_LT(size(64, 64, 4096, 2), size(64, 64, 4096, 3));
            // x as fp32, a bias, scales, and a panel with its sums for each task.
            EXPECT_LE(size(1024, 4096, 4096, 2), (1024 + 3) * 4200 * sizeof(float) + 2 * 2500000);
        }
        EXPECT_LE(linear(1, 4096, 4096, 2), 2 * 600000);
    }
    lowbit_cpu_isa_cap(nullptr);
}

// Every name is of a row that the table of its level holds.
TEST(Lut4Linear, KernelsAreNamedForReports) {
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (lowbit_dtype dtype : float_dtypes)
            for (size_t m : {0, 1, 8, 9, 16, 17, 1000})
                for (size_t k : {0, 64, 100, 4096}) {
                    const char *name = lowbit_lut4_linear_ukernel(dtype, m, k, 64);
                    ASSERT_NE(name, nullptr);
                    EXPECT_NE(std::strstr(name, "__"), nullptr) << name;
                }
    }
    ASSERT_EQ(lowbit_cpu_isa_cap("scalar"), LOWBIT_OK);
    EXPECT_STREQ(lowbit_lut4_linear_ukernel(LOWBIT_BFLOAT16, 4, 4096, 64), "f32_8x16__scalar");
    lowbit_cpu_isa_cap(nullptr);
}

} // namespace
