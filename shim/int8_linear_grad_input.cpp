// SPDX-License-Identifier: MIT

#include "torch_product.h"

namespace lowbit {

static Tensor int8_linear_grad_input(const Tensor &grad_output, const Tensor &weight,
                                     const Tensor &absmax, const OptionalTensor &offset) {
    const Op op("int8_linear_grad_input", grad_output);
    const View grad = rows_of(op, "grad_output", grad_output);
    const View codes = weight_of(op, "weight", weight);
    const Shape rows = {weight.size(0)};
    const View scale = vector_of(op, "absmax", absmax, rows);
    const std::optional<View> base = vector_of(op, "offset", offset, rows);
    const View out = new_rows(op, "grad_input", grad_output, with_last(grad_output, weight.size(1)),
                              grad_output.scalar_type());
    const lowbit_executor threads = op.executor();
    const Workspace workspace(grad_output, lowbit_int8_linear_grad_input_workspace_size(
                                               grad.tensor.rows, codes.tensor.rows,
                                               codes.tensor.cols, threads.max_tasks));
    const lowbit_int8_linear_grad_input_args args = {
        .grad_output = &grad.tensor,
        .weight = &codes.tensor,
        .absmax = &scale.tensor,
        .offset = pointer(base),
        .grad_input = &out.tensor,
    };
    if (served(lowbit_int8_linear_grad_input(&args, &threads, workspace.data(), workspace.size())))
        return out.owner;
    const View floats = new_rows(op, "weight", weight, shape_of(weight), grad_output.scalar_type());
    check(lowbit_int8_dequantize(&codes.tensor, &scale.tensor, pointer(base), &floats.tensor,
                                 &threads));
    matmul_out(grad_output, floats.owner, out.owner);
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(int8_linear_grad_input)
