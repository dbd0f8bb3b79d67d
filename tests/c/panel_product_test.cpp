// SPDX-License-Identifier: MIT
// The product with a matrix that is made panel by panel, for every instruction set that this machine
// has: of floats equal to its specification in bits, of bf16 numbers within rounding of float64.

#include "samples.h"

#include "../../ops/panel_product.h"

#include <set>
#include <utility>

namespace {

struct Product {
    size_t m, r, c;
    bool bf16, with_start;
    lowbit_dtype x_dtype, y_dtype;
    Tensor x, w, start, y;
    std::set<std::pair<size_t, size_t>> made; // what fill was asked for, its first row and column

    Product(Random &random, bool bf16, size_t m, size_t r, size_t c)
        : m(m), r(r), c(c), bf16(bf16), with_start(random.one_in(2)),
          x_dtype(bf16 ? LOWBIT_BFLOAT16 : random.pick(float_dtypes)),
          y_dtype(random.pick(float_dtypes)), x(x_dtype, m, r, random.below(3)),
          w(bf16 ? LOWBIT_BFLOAT16 : LOWBIT_FLOAT32, r, c),
          start(Tensor::vector(LOWBIT_FLOAT32, c)), y(y_dtype, m, c, random.below(3)) {
        for (Tensor *input : {&x, &w, &start})
            fill(*input, random, ordinary);
        for (Tensor *input : {&x, &w, &start})
            input->make_read_only();
    }

    static void make(void *ctx, size_t, size_t r0, size_t r, size_t c0, size_t c, void *panel,
                     size_t stride) {
        auto *p = static_cast<Product *>(ctx);
        p->made.insert({r0, c0});
        for (size_t i = 0; i < r; i++)
            for (size_t j = 0; j < c; j++)
                if (!p->in_bf16)
                    ((float *)panel)[i * stride + j] = p->w.get(r0 + i, c0 + j);
                else if (i % 2 == 0)
                    ((uint32_t *)panel)[i / 2 * stride + j] =
                        p->w.at<uint16_t>(r0 + i, c0 + j) |
                        (i + 1 < r ? (uint32_t)p->w.at<uint16_t>(r0 + i + 1, c0 + j) << 16 : 0);
    }
    bool in_bf16 = false; // what the machine made of bf16

    void run(uint32_t isa) {
        lowbit_panel_product product;
        lowbit_arena measure = {nullptr, 0};
        lowbit_panel_product_plan(&product, isa, bf16, m, r, 1, &measure);
        const Workspace workspace(measure.used);
        lowbit_arena arena = {(char *)workspace.data(), 0};
        lowbit_panel_product_plan(&product, isa, bf16, m, r, 1, &arena);
        EXPECT_EQ(arena.used, measure.used);
        in_bf16 = product.gemm->type == LOWBIT_BFLOAT16;
        lowbit_panel_product_args args = {};
        args.x = x;
        args.y = y;
        args.start = with_start ? start.buffer().as<float>() : nullptr;
        args.fill = make;
        args.ctx = this;
        made.clear();
        y.clear();
        lowbit_panel_product_run(&product, &args, nullptr);
    }

    void expect_product() const {
        Tensor want(y_dtype, m, c, y->stride - y->cols);
        for (size_t row = 0; row < m; row++)
            for (size_t column = 0; column < c; column++) {
                float sum = with_start ? start.get(column, 0) : 0;
                double exact = sum, size = std::fabs(exact);
                for (size_t r0 = 0; r0 < r; r0 += 256) {
                    float part = 0;
                    for (size_t i = r0; i < r && i < r0 + 256; i++) {
                        part = std::fma(x.get(row, i), w.get(i, column), part);
                        exact += (double)x.get(row, i) * w.get(i, column);
                        size += std::fabs((double)x.get(row, i) * w.get(i, column));
                    }
                    sum += part;
                }
                want.set(row, column, sum + 0.0f);
                if (in_bf16) {
                    const double bound = (double)(r + 4) * 0x1p-24 * size;
                    ASSERT_LE(std::fabs(y.get(row, column) - exact),
                              bound + rounding(y_dtype, std::fabs(exact) + bound))
                        << "row " << row << ", column " << column;
                    want.set(row, column, y.get(row, column));
                }
            }
        EXPECT_TRUE(same_bits(want, y));
    }
};

void check(Random &random, size_t m, size_t r, size_t c) {
    for (bool bf16 : {false, true}) {
        Product product(random, bf16, m, r, c);
        uint32_t isa = 0;
        for (const char *level : isa_levels()) {
            lowbit_cpu_isa_cap(level);
            isa = lowbit_cpu_isa();
            SCOPED_TRACE(testing::Message()
                         << level << ", bf16 " << bf16 << ", m " << m << ", r " << r << ", c " << c
                         << ", x " << dtype_name(product.x_dtype) << ", y "
                         << dtype_name(product.y_dtype));
            product.run(isa);
            product.expect_product();
            const size_t block = product.in_bf16 ? 512 : 256;
            EXPECT_EQ(product.made.size() % ((r + block - 1) / block + !r), 0u);
        }
        lowbit_cpu_isa_cap(nullptr);
    }
}

TEST(PanelProduct, EqualsTheSpecification) {
    Random random(50);
    for (int i = 0; i < samples(40) && !HasFailure(); i++) {
        size_t m = random.size(80), r = random.size(1200), c = random.size(700);
        cut(m, r, c, 1000000);
        check(random, m, r, c);
    }
}

TEST(PanelProduct, Edges) {
    Random random(51);
    for (size_t r : {0, 1, 255, 256, 257, 511, 512, 513})
        for (size_t c : {0, 1, 255, 256, 257})
            if (!HasFailure())
                check(random, 1 + random.below(3), r, c);
    check(random, 1025, 33, 70);
    check(random, 0, 33, 70);
}

} // namespace
