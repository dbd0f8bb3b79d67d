// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

static Tensor blockwise_dequantize(const Tensor &q, const Tensor &absmax, const Tensor &codebook,
                                   OptionalType dtype, int64_t blocksize) {
    const Op op("blockwise_dequantize", q);
    const View codes = elements_of(op, "q", q);
    const View scales = vector_of(op, "absmax", absmax, Shape{block_count(op, q, blocksize)});
    const View values = vector_of(op, "codebook", codebook, Shape{256});
    const View out =
        new_vector(op, "out", q, shape_of(q), float_type(op, "dtype", dtype, ScalarType::Float));
    const lowbit_executor threads = op.executor();
    check(lowbit_blockwise_dequantize(&codes.tensor, &scales.tensor, &values.tensor,
                                      static_cast<size_t>(blocksize), &out.tensor, &threads));
    return out.owner;
}

} // namespace lowbit

LOWBIT_REGISTER(blockwise_dequantize)
