// SPDX-License-Identifier: MIT

#include "lut4_weight.h"

#include <tuple>

namespace lowbit {

static std::tuple<Tensor, Tensor> lut4_quantize(const Tensor &weight, const Tensor &codebook,
                                                int64_t blocksize) {
    const Op op("lut4_quantize", weight);
    const View in = flat_of(op, "weight", torch::stable::contiguous(weight));
    const View values = flat_of(op, "codebook", codebook);
    const int64_t block = static_cast<int64_t>(blocksize_of(op, blocksize));
    const int64_t elements = weight.numel();
    // Rows of whole blocks keep the weight's shape, so that packed and absmax are split by rows
    // like it.
    Shape packed_shape = {(elements + 1) / 2}, absmax_shape = {(elements + block - 1) / block};
    if (weight.dim() == 2 && weight.size(1) % block == 0) {
        packed_shape = {weight.size(0), weight.size(1) / 2};
        absmax_shape = {weight.size(0), weight.size(1) / block};
    }
    const View packed = new_vector(op, "packed", weight, packed_shape, ScalarType::Byte);
    const View absmax = new_vector(op, "absmax", weight, absmax_shape, ScalarType::Float);
    const lowbit_executor threads = op.executor();
    check(lowbit_lut4_quantize(&in.tensor, &values.tensor, static_cast<size_t>(block),
                               &packed.tensor, &absmax.tensor, &threads));
    return {packed.owner, absmax.owner};
}

} // namespace lowbit

LOWBIT_REGISTER(lut4_quantize)
