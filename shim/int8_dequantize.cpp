// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

static Tensor int8_dequantize(const Tensor &q, const Tensor &absmax, const OptionalTensor &offset,
                              OptionalType dtype) {
    const Op op("int8_dequantize", q);
    const View codes = rows_of(op, "q", q);
    const View scale = vector_of(op, "absmax", absmax, without_last(q));
    const std::optional<View> base = vector_of(op, "offset", offset, without_last(q));
    const View out =
        new_rows(op, "out", q, shape_of(q), float_type(op, "dtype", dtype, ScalarType::Float));
    const lowbit_executor threads = op.executor();
    check(
        lowbit_int8_dequantize(&codes.tensor, &scale.tensor, pointer(base), &out.tensor, &threads));
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(int8_dequantize)
