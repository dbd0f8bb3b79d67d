// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

static Tensor int8_linear(const Tensor &x, const Tensor &weight, const Tensor &absmax,
                          const OptionalTensor &offset, const OptionalTensor &bias,
                          double threshold, OptionalType out_dtype) {
    const Op op("int8_linear", x);
    const View in = rows_of(op, "x", x);
    const View codes = weight_of(op, "weight", weight);
    const Shape rows = {weight.size(0)};
    const View scale = vector_of(op, "absmax", absmax, rows);
    const std::optional<View> base = vector_of(op, "offset", offset, rows);
    const std::optional<View> shift = vector_of(op, "bias", bias, rows);
    const View out = new_rows(op, "y", x, with_last(x, weight.size(0)),
                              float_type(op, "out_dtype", out_dtype, x.scalar_type()));
    const lowbit_executor threads = op.executor();
    const Workspace workspace(x,
                              lowbit_int8_linear_workspace_size(in.tensor.rows, codes.tensor.rows,
                                                                in.tensor.cols, threads.max_tasks));
    const lowbit_int8_linear_args args = {
        .x = &in.tensor,
        .weight = &codes.tensor,
        .absmax = &scale.tensor,
        .offset = pointer(base),
        .bias = pointer(shift),
        .threshold = threshold_of(op, threshold),
        .y = &out.tensor,
    };
    check(lowbit_int8_linear(&args, &threads, workspace.data(), workspace.size()));
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(int8_linear)
