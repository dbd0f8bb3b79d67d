// SPDX-License-Identifier: MIT

#include "lut4_weight.h"
#include "torch_product.h"

namespace lowbit {

static Tensor lut4_linear(const Tensor &x, const Tensor &packed, const Tensor &absmax,
                          const Tensor &codebook, const OptionalTensor &bias, int64_t blocksize,
                          const OptionalTensor &nested_absmax,
                          const OptionalTensor &nested_codebook,
                          const OptionalTensor &nested_offset, OptionalType out_dtype) {
    const Op op("lut4_linear", x);
    const View in = rows_of(op, "x", x);
    const Lut4Weight weight(op, packed, absmax, codebook, blocksize, nested_absmax, nested_codebook,
                            nested_offset);
    const int64_t k = x.size(x.dim() - 1);
    if (k == 0)
        refuse(op, "x", " has shape ", to_string(shape_of(x)),
               ", expected columns: packed does not tell how many rows a weight without any has");
    const int64_t n = 2 * packed.numel() / k; // an odd last byte holds half of a code too many
    const std::optional<View> shift = vector_of(op, "bias", bias, {n});
    const ScalarType type = float_type(op, "out_dtype", out_dtype, x.scalar_type());
    const View out = new_rows(op, "y", x, with_last(x, n), type);
    const lowbit_executor threads = op.executor();
    const Workspace workspace(x,
                              lowbit_lut4_linear_workspace_size(in.tensor.rows, out.tensor.cols,
                                                                in.tensor.cols, threads.max_tasks));
    const lowbit_lut4_linear_args args = {
        .x = &in.tensor,
        .weight = weight.tensors(),
        .bias = pointer(shift),
        .y = &out.tensor,
    };
    if (served(lowbit_lut4_linear(&args, &threads, workspace.data(), workspace.size())))
        return out.owner;
    OptionalTensor shift_as_x;
    if (bias)
        shift_as_x = torch::stable::to(*bias, x.scalar_type());
    const Tensor floats = weight.dequantized(op, {n, k}, x.scalar_type()).owner;
    const Tensor y = type == x.scalar_type()
                         ? out.owner
                         : new_rows(op, "y", x, with_last(x, n), x.scalar_type()).owner;
    linear_out(x, floats, shift_as_x, y);
    return torch::stable::to(y, type);
}

} // namespace lowbit

LOWBIT_REGISTER(lut4_linear)
