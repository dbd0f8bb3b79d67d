// SPDX-License-Identifier: MIT
// Calls of int8_linear with every kind of values and outliers, and what the reference makes of them.
#ifndef LOWBIT_TESTS_INT8_TESTING_H
#define LOWBIT_TESTS_INT8_TESTING_H

#include "samples.h"

#include <cfloat>
#include <sstream>

enum Outliers { none, columns, few, percent, many, all };
const char *const outlier_names[] = {"none", "columns", "few", "percent", "many", "all"};

inline void plant_outliers(Tensor &x, Random &random, Outliers kind) {
    const bool specials = random.one_in(4); // in a few of the rows: they drown out the others
    const size_t first_column = random.below(x->cols + 1), stride = random.size(97);
    for (size_t row = 0; row < x->rows; row++)
        for (size_t col = 0; col < x->cols; col++) {
            const bool plant = kind == columns ? col % (stride + 40) == first_column % (stride + 40)
                               : kind == few   ? random.one_in(x->cols)
                               : kind == percent ? random.one_in(100)
                               : kind == many    ? random.one_in(3)
                                                 : kind == all;
            if (!plant)
                continue;
            const float special[] = {INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX, 1e30f};
            const float value = random.uniform(6, 60) * (random.one_in(2) ? 1 : -1);
            x.set(row, col, specials && row % 5 == 3 ? random.pick(special) : value);
        }
}

struct LinearCase {
    size_t m, n, k;
    lowbit_dtype x_dtype, scale_dtype, bias_dtype, y_dtype;
    bool offset, bias;
    float threshold;
    Values values, scales;
    Outliers outliers;
    size_t x_gap, y_gap;

    static LinearCase random(Random &random, size_t m, size_t n, size_t k) {
        const float thresholds[] = {0, 0, 6, 6, 6, 6, 1e-30f, FLT_TRUE_MIN, 2.5f, FLT_MAX};
        const Outliers kinds[] = {none, columns, columns, few, percent, many, all};
        return {m,
                n,
                k,
                random.pick(float_dtypes),
                random.pick(scale_dtypes),
                random.pick(float_dtypes),
                random.pick(float_dtypes),
                random.one_in(2),
                random.one_in(2),
                random.pick(thresholds),
                random.pick(value_kinds),
                random.pick(value_kinds),
                random.pick(kinds),
                random.one_in(3) ? random.below(70) : 0,
                random.one_in(3) ? random.below(70) : 0};
    }

    std::string text() const {
        std::ostringstream out;
        out << "M=" << m << " N=" << n << " K=" << k << " x=" << dtype_name(x_dtype)
            << " absmax=" << dtype_name(scale_dtype) << (offset ? " offset" : "")
            << " bias=" << (bias ? dtype_name(bias_dtype) : "null") << " y=" << dtype_name(y_dtype)
            << " threshold=" << threshold << " values=" << value_names[values]
            << " scales=" << value_names[scales] << " outliers=" << outlier_names[outliers]
            << " gaps=" << x_gap << "," << y_gap;
        return out.str();
    }
};

struct LinearData {
    Tensor x, weight, absmax, offset, bias, y, expected;
    lowbit_int8_linear_args args;

    LinearData(const LinearCase &c, Random &random)
        : x(c.x_dtype, c.m, c.k, c.x_gap), weight(LOWBIT_INT8, c.n, c.k),
          absmax(Tensor::vector(c.scale_dtype, c.n)), offset(Tensor::vector(c.scale_dtype, c.n)),
          bias(Tensor::vector(c.bias_dtype, c.n)), y(c.y_dtype, c.m, c.n, c.y_gap),
          expected(c.y_dtype, c.m, c.n, c.y_gap),
          args{x,           weight, absmax, or_null(c.offset, offset), or_null(c.bias, bias),
               c.threshold, y} {
        fill(x, random, c.values);
        plant_outliers(x, random, c.outliers);
        fill_codes(weight, random, -127);
        fill_scales(absmax, offset, random, c.scales);
        fill(bias, random, ordinary);
        for (Tensor *input : {&x, &weight, &absmax, &offset, &bias})
            input->make_read_only();
        lowbit_int8_linear_args reference = args;
        reference.y = expected;
        reference_int8_linear(&reference);
    }
};

#endif
