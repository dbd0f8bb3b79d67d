// SPDX-License-Identifier: MIT
// A 4-bit weight from the tensors that every lut4 operator takes.
#ifndef LOWBIT_SHIM_LUT4_WEIGHT_H
#define LOWBIT_SHIM_LUT4_WEIGHT_H

#include "tensor_bridge.h"

namespace lowbit {

inline size_t blocksize_of(const Op &op, int64_t given) {
    if (given <= 0)
        refuse(op, "blocksize", " is ", given, ", expected a power of two from 32 to 4096");
    return static_cast<size_t>(given);
}

struct Lut4Weight {
    View packed, absmax, codebook;
    size_t blocksize;
    std::optional<View> nested_absmax, nested_codebook, nested_offset;

    Lut4Weight(const Op &op, const Tensor &packed, const Tensor &absmax, const Tensor &codebook,
               int64_t blocksize, const OptionalTensor &nested_absmax,
               const OptionalTensor &nested_codebook, const OptionalTensor &nested_offset)
        : packed(flat_of(op, "packed", packed)), absmax(flat_of(op, "absmax", absmax)),
          codebook(flat_of(op, "codebook", codebook)), blocksize(blocksize_of(op, blocksize)),
          nested_absmax(flat_of(op, "nested_absmax", nested_absmax)),
          nested_codebook(flat_of(op, "nested_codebook", nested_codebook)),
          nested_offset(flat_of(op, "nested_offset", nested_offset)) {}

    lowbit_lut4_weight tensors() const {
        return {
            .packed = &packed.tensor,
            .absmax = &absmax.tensor,
            .codebook = &codebook.tensor,
            .blocksize = blocksize,
            .nested_absmax = pointer(nested_absmax),
            .nested_codebook = pointer(nested_codebook),
            .nested_offset = pointer(nested_offset),
        };
    }

    // The whole weight as floats.
    View dequantized(const Op &op, const Shape &shape, ScalarType type) const {
        const View out = new_vector(op, "out", packed.owner, shape, type);
        const lowbit_lut4_weight weight = tensors();
        const lowbit_executor threads = op.executor();
        check(lowbit_lut4_dequantize(&weight, &out.tensor, &threads));
        return out;
    }
};

} // namespace lowbit

#endif
