// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

static Tensor int8_matmul(const Tensor &a, const Tensor &b) {
    const Op op("int8_matmul", a);
    const View left = rows_of(op, "a", a);
    const View right = weight_of(op, "b", b);
    const View out = new_rows(op, "out", a, with_last(a, b.size(0)), ScalarType::Int);
    const lowbit_executor threads = op.executor();
    const Workspace workspace(
        a, lowbit_int8_matmul_workspace_size(left.tensor.rows, right.tensor.rows, left.tensor.cols,
                                             threads.max_tasks));
    check(lowbit_int8_matmul(&left.tensor, &right.tensor, &out.tensor, &threads, workspace.data(),
                             workspace.size()));
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(int8_matmul)
