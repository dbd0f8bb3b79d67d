// SPDX-License-Identifier: MIT

#include "lut4_weight.h"

namespace lowbit {

#if LOWBIT_CUDA
// Torch's own, which rounds once.
static Tensor linear(const Tensor &x, const Tensor &weight, const OptionalTensor &bias) {
    StableIValue stack[] = {torch::stable::detail::from(x), torch::stable::detail::from(weight),
                            torch::stable::detail::from(bias)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}
#endif

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
#if LOWBIT_CUDA
    const lowbit_lut4_weight tensors = weight.tensors();
    if (op.on_cuda() && !lowbit_lut4_linear_cuda_takes(&tensors, &in.tensor)) {
        const Tensor floats = weight.dequantized(op, {n, k}, x.scalar_type()).owner;
        if (!bias)
            return torch::stable::to(linear(x, floats, bias), type);
        return torch::stable::to(linear(x, floats, torch::stable::to(*bias, x.scalar_type())),
                                 type);
    }
#endif
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
    check(lowbit_lut4_linear(&args, &threads, workspace.data(), workspace.size()));
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(lut4_linear)
