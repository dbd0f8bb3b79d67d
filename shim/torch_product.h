// SPDX-License-Identifier: MIT
// Products of floats by torch itself, in the forms that write to a given tensor: of the others
// autocast would choose the type.
#ifndef LOWBIT_SHIM_TORCH_PRODUCT_H
#define LOWBIT_SHIM_TORCH_PRODUCT_H

#include "tensor_bridge.h"

namespace lowbit {

template <class... Args> Tensor call_out(const char *name, const Args &...args) {
    StableIValue stack[] = {torch::stable::detail::from(args)...};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack, TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// [..., size] as a matrix: with more dimensions torch rounds before it adds a bias.
inline Tensor matrix(const Tensor &tensor, int64_t size) {
    return torch::stable::reshape(tensor, {tensor.numel() / size, size});
}

// y [..., k] = x [..., n] times weight [n, k], all of one dtype, y contiguous.
inline void matmul_out(const Tensor &x, const Tensor &weight, const Tensor &y) {
    if (y.numel())
        call_out("aten::matmul", matrix(x, weight.size(0)), weight, matrix(y, weight.size(1)));
}

// y [..., n] = x [..., k] times weight [n, k] transposed, plus bias; likewise.
inline void linear_out(const Tensor &x, const Tensor &weight, const OptionalTensor &bias,
                       const Tensor &y) {
    if (y.numel())
        call_out("aten::linear", matrix(x, weight.size(1)), weight, bias,
                 matrix(y, weight.size(0)));
}

} // namespace lowbit

#endif
