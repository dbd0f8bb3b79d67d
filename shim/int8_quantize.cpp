// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

#include <tuple>

namespace lowbit {

static std::tuple<Tensor, Tensor> int8_quantize(const Tensor &x, double threshold,
                                                OptionalType absmax_dtype) {
    const Op op("int8_quantize", x);
    const View in = rows_of(op, "x", x);
    const View q = new_rows(op, "q", x, shape_of(x), ScalarType::Char);
    const View absmax =
        new_vector(op, "absmax", x, without_last(x), absmax_dtype.value_or(ScalarType::Float));
    const lowbit_executor threads = op.executor();
    check(lowbit_int8_quantize(&in.tensor, threshold_of(op, threshold), &q.tensor, &absmax.tensor,
                               &threads));
    return {q.owner, absmax.owner};
}

static std::tuple<Tensor, Tensor, Tensor> int8_quantize_offset(const Tensor &weight,
                                                               OptionalType absmax_dtype) {
    const Op op("int8_quantize_offset", weight);
    const ScalarType type = absmax_dtype.value_or(ScalarType::Float);
    const View in = rows_of(op, "weight", weight);
    const View q = new_rows(op, "q", weight, shape_of(weight), ScalarType::Char);
    const View absmax = new_vector(op, "absmax", weight, without_last(weight), type);
    const View offset = new_vector(op, "offset", weight, without_last(weight), type);
    const lowbit_executor threads = op.executor();
    check(lowbit_int8_quantize_offset(&in.tensor, &q.tensor, &absmax.tensor, &offset.tensor,
                                      &threads));
    return {q.owner, absmax.owner, offset.owner};
}

static void int8_requantize_(const Tensor &q, const Tensor &absmax, const Tensor &master) {
    const Op op("int8_requantize_", q);
    check_no_grad(op);
    const View codes = weight_of(op, "q", q);
    const View scale = vector_of(op, "absmax", absmax, Shape{q.size(0)});
    check_shape(op, "master", master, shape_of(q));
    const View from = rows_of(op, "master", master);
    const lowbit_executor threads = op.executor();
    check(lowbit_int8_requantize(&codes.tensor, &scale.tensor, &from.tensor, &threads));
}

} // namespace lowbit

LOWBIT_REGISTER(int8_quantize)
LOWBIT_REGISTER(int8_quantize_offset)
LOWBIT_REGISTER(int8_requantize_)
