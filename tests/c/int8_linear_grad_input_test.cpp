// SPDX-License-Identifier: MIT
// int8_linear_grad_input equals the reference in bits: at every instruction set, with every
// executor, in any floating-point environment. Where a processor multiplies bf16 numbers, it is
// within that arithmetic's error of float64, and one instruction set's bits are the same always.

#include "samples.h"

namespace {

struct GradInput {
    lowbit_dtype grad_dtype, scale_dtype, dtype;
    Values values;
    bool with_offset;
    size_t gap;
    Tensor grad_output, weight, absmax, offset, grad_input, expected;
    lowbit_int8_linear_grad_input_args args;

    GradInput(Random &random, size_t m, size_t n, size_t k)
        : grad_dtype(random.pick(float_dtypes)), scale_dtype(random.pick(scale_dtypes)),
          dtype(random.pick(float_dtypes)), values(random.pick(value_kinds)),
          with_offset(random.one_in(2)), gap(random.one_in(3) ? random.below(70) : 0),
          grad_output(grad_dtype, m, n, gap), weight(LOWBIT_INT8, n, k),
          absmax(Tensor::vector(scale_dtype, n)), offset(Tensor::vector(scale_dtype, n)),
          grad_input(dtype, m, k, gap), expected(dtype, m, k, gap),
          args{grad_output, weight, absmax, or_null(with_offset, offset), expected} {
        fill(grad_output, random, values);
        fill_codes(weight, random, -128);
        fill_scales(absmax, offset, random, values);
        for (Tensor *input : {&grad_output, &weight, &absmax, &offset})
            input->make_read_only();
        reference_int8_linear_grad_input(&args);
        args.grad_input = grad_input;
    }

    std::string text() const {
        return "M=" + std::to_string(grad_output->rows) + " N=" + std::to_string(weight->rows) +
               " K=" + std::to_string(weight->cols) + " grad_output=" + dtype_name(grad_dtype) +
               " absmax=" + dtype_name(scale_dtype) + (with_offset ? " offset" : "") +
               " grad_input=" + dtype_name(dtype) + " values=" + value_names[values] +
               " gap=" + std::to_string(gap);
    }

    // At this level the products are those of bf16 numbers, and not the reference's.
    bool in_bf16() const {
        return grad_dtype == LOWBIT_BFLOAT16 && lowbit_cpu_isa() & LOWBIT_ISA_AVX512BF16;
    }

    // |error| <= 2^-8 sum |g s w|, from rounding g * s to bf16, and one fp32 rounding for each n
    // and a few more besides on the way of each product through the sums; then that of the result.
    // A product or sum that is flushed is below 2^-126.
    void expect_close() const {
        for (size_t row = 0; row < expected->rows; row++)
            for (size_t k = 0; k < expected->cols; k++) {
                double sum = 0, products = 0, offsets = 0;
                for (size_t n = 0; n < weight->rows; n++) {
                    const double g = grad_output.get(row, n);
                    const double s = (double)absmax.get(n, 0) / 127;
                    const double o = with_offset ? offset.get(n, 0) : 0;
                    sum += g * (s * weight.at<int8_t>(n, k) + o);
                    products += std::fabs(g * s * weight.at<int8_t>(n, k));
                    offsets += std::fabs(g * o);
                }
                const double count = (double)weight->rows;
                const double bound = 0x1p-8 * products +
                                     (count + 8) * 0x1p-24 * (products + offsets) +
                                     count * 256 * 0x1p-126;
                ASSERT_LE(std::fabs(grad_input.get(row, k) - sum),
                          bound + rounding(dtype, std::fabs(sum) + bound))
                    << "row " << row << " column " << k;
            }
    }
};

lowbit_status run(const lowbit_int8_linear_grad_input_args &args, const Executor &executor) {
    const Workspace workspace(lowbit_int8_linear_grad_input_workspace_size(
        args.grad_output->rows, args.weight->rows, args.weight->cols, executor.max_tasks()));
    return lowbit_int8_linear_grad_input(&args, executor, workspace.data(), workspace.size());
}

void check_grad_input(Random &random, size_t m, size_t n, size_t k) {
    GradInput d(random, m, n, k);
    SCOPED_TRACE(d.text());
    Tensor first(d.dtype, m, k, d.gap);
    uint32_t level_of_first = 0;
    expect_everywhere(
        [&](const Executor &executor) {
            d.grad_input.clear();
            return run(d.args, executor);
        },
        [&] {
            if (!d.in_bf16()) {
                EXPECT_TRUE(same_bits(d.expected, d.grad_input));
            } else if (level_of_first != lowbit_cpu_isa()) {
                level_of_first = lowbit_cpu_isa();
                first.copy(d.grad_input);
                if (d.values == ordinary)
                    d.expect_close();
            } else {
                EXPECT_TRUE(same_bits(first, d.grad_input)) << "not the first executor's bits";
            }
        });
}

TEST(Int8LinearGradInput, EveryNumberOfRows) {
    Random random(30);
    for (int pass = 0; pass < samples(2); pass++)
        for (size_t m = 0; m <= 70 && !HasFailure(); m++) {
            size_t n = random.size(1100), k = random.size(1100);
            cut(m, n, k, 1000000);
            check_grad_input(random, m, n, k);
        }
}

// Rows of grad_output are walked in blocks of 1024.
TEST(Int8LinearGradInput, ManyRows) {
    Random random(31);
    for (size_t m : {1023, 1024, 1025, 1100, 2049})
        if (!HasFailure())
            check_grad_input(random, m, 1 + random.below(80), 1 + random.below(100));
}

// Products are summed in blocks of 256 rows of the weight.
TEST(Int8LinearGradInput, ManyWeightRows) {
    Random random(32);
    for (size_t n : {255, 256, 257, 511, 512, 513, 4097})
        if (!HasFailure())
            check_grad_input(random, 1 + random.below(20), n, 1 + random.below(300));
}

// The kernels differ with the number of rows.
TEST(Int8LinearGradInput, RowsDoNotDependOnEachOther) {
    Random random(34);
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (int i = 0; i < samples(9) && !HasFailure(); i++) {
            GradInput d(random, 61, 1 + random.below(600), 1 + random.below(300));
            SCOPED_TRACE(std::string(level) + ", " + d.text());
            const Executor serial(ways[0]);
            ASSERT_EQ(run(d.args, serial), LOWBIT_OK);
            d.expected.copy(d.grad_input);
            d.grad_input.clear();
            for (size_t first = 0; first < 61;) {
                const size_t rows = std::min(random.size(40), 61 - first);
                const lowbit_tensor grad_output = d.grad_output.slice(first, rows);
                const lowbit_tensor grad_input = d.grad_input.slice(first, rows);
                lowbit_int8_linear_grad_input_args args = d.args;
                args.grad_output = &grad_output;
                args.grad_input = &grad_input;
                ASSERT_EQ(run(args, serial), LOWBIT_OK);
                first += rows;
            }
            EXPECT_TRUE(same_bits(d.expected, d.grad_input));
        }
    }
    lowbit_cpu_isa_cap(nullptr);
}

TEST(Int8LinearGradInput, NothingToSum) {
    Random random(33);
    for (size_t m : {0, 1, 5})
        for (size_t n : {0, 1})
            for (size_t k : {0, 1, 70})
                if (!HasFailure())
                    check_grad_input(random, m, n, k);
}

TEST(Int8LinearGradInput, WorkspaceGrowsWithRowsAndTasksOnly) {
    const auto size = lowbit_int8_linear_grad_input_workspace_size;
    EXPECT_EQ(size(64, 4096, 1000, 2), size(64, 4096, 100000, 2));
    EXPECT_EQ(size(1024, 4096, 4096, 2), size(100000, 4096, 4096, 2));
    // grad_output as fp32, scales, and a panel with its sums for each task.
    EXPECT_LE(size(1024, 4096, 4096, 2), (1024 + 2) * 4096 * sizeof(float) + 2 * 2000000);
}

} // namespace
