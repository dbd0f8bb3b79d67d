// SPDX-License-Identifier: MIT

#include "lut4_weight.h"
#include "torch_product.h"

namespace lowbit {

static Tensor lut4_linear_grad_input(const Tensor &grad_output, const Tensor &packed,
                                     const Tensor &absmax, const Tensor &codebook,
                                     int64_t in_features, int64_t blocksize,
                                     const OptionalTensor &nested_absmax,
                                     const OptionalTensor &nested_codebook,
                                     const OptionalTensor &nested_offset) {
    const Op op("lut4_linear_grad_input", grad_output);
    const View grad = rows_of(op, "grad_output", grad_output);
    const Lut4Weight weight(op, packed, absmax, codebook, blocksize, nested_absmax, nested_codebook,
                            nested_offset);
    if (in_features < 0)
        refuse(op, "in_features", " is ", in_features, ", expected a number that is not negative");
    const View out = new_rows(op, "grad_input", grad_output, with_last(grad_output, in_features),
                              grad_output.scalar_type());
    const lowbit_executor threads = op.executor();
    const Workspace workspace(
        grad_output, lowbit_lut4_linear_grad_input_workspace_size(
                         grad.tensor.rows, grad.tensor.cols, out.tensor.cols, threads.max_tasks));
    const lowbit_lut4_linear_grad_input_args args = {
        .grad_output = &grad.tensor,
        .weight = weight.tensors(),
        .grad_input = &out.tensor,
    };
    if (served(lowbit_lut4_linear_grad_input(&args, &threads, workspace.data(), workspace.size())))
        return out.owner;
    const Shape shape = {grad_output.size(grad_output.dim() - 1), in_features};
    matmul_out(grad_output, weight.dequantized(op, shape, grad_output.scalar_type()).owner,
               out.owner);
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(lut4_linear_grad_input)
