// SPDX-License-Identifier: MIT

#include "lut4_weight.h"

namespace lowbit {

static Tensor lut4_dequantize(const Tensor &packed, const Tensor &absmax, const Tensor &codebook,
                              const Shape &shape, OptionalType dtype, int64_t blocksize,
                              const OptionalTensor &nested_absmax,
                              const OptionalTensor &nested_codebook,
                              const OptionalTensor &nested_offset) {
    const Op op("lut4_dequantize", packed);
    const Lut4Weight weight(op, packed, absmax, codebook, blocksize, nested_absmax, nested_codebook,
                            nested_offset);
    int64_t elements = 1;
    for (int64_t size : shape)
        if (size < 0 || __builtin_mul_overflow(elements, size, &elements))
            refuse(op, "shape", " is ", to_string(shape),
                   ", expected sizes that are not negative, and their product an int64");
    // Before the output of that shape is allocated.
    if (packed.numel() != elements / 2 + elements % 2)
        refuse(op, "packed", " has ", packed.numel(), " elements, expected ",
               elements / 2 + elements % 2, " for shape ", to_string(shape));
    return weight.dequantized(op, shape, float_type(op, "dtype", dtype, ScalarType::Float)).owner;
}

} // namespace lowbit

LOWBIT_REGISTER(lut4_dequantize)
