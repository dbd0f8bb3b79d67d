// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

#include <tuple>

namespace lowbit {

static std::tuple<Tensor, Tensor> blockwise_quantize(const Tensor &x, const Tensor &codebook,
                                                     int64_t blocksize) {
    const Op op("blockwise_quantize", x);
    const View in = elements_of(op, "x", x);
    const View values = vector_of(op, "codebook", codebook, Shape{256});
    const View absmax =
        new_vector(op, "absmax", x, Shape{block_count(op, x, blocksize)}, ScalarType::Float);
    const View q = new_vector(op, "q", x, shape_of(x), ScalarType::Byte);
    const lowbit_executor threads = op.executor();
    check(lowbit_blockwise_quantize(&in.tensor, &values.tensor, static_cast<size_t>(blocksize),
                                    &q.tensor, &absmax.tensor, &threads));
    return {q.owner, absmax.owner};
}

} // namespace lowbit

LOWBIT_REGISTER(blockwise_quantize)
