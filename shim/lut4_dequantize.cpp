// SPDX-License-Identifier: MIT

#include "lut4_weight.h"

namespace lowbit {

static Tensor lut4_dequantize(const Tensor &packed, const Tensor &absmax, const Tensor &codebook,
                              const Shape &shape, OptionalType dtype, int64_t blocksize,
                              const OptionalTensor &nested_absmax,
                              const OptionalTensor &nested_codebook,
                              const OptionalTensor &nested_offset) {
    const char *op = "lut4_dequantize";
    const Lut4Weight weight(op, packed, absmax, codebook, blocksize, nested_absmax, nested_codebook,
                            nested_offset);
    for (int64_t size : shape)
        if (size < 0)
            refuse(op, "shape", " is ", to_string(shape), ", expected sizes that are not negative");
    const View out =
        new_vector(op, "out", packed, shape, float_type(op, "dtype", dtype, ScalarType::Float));
    const lowbit_lut4_weight tensors = weight.tensors();
    const lowbit_executor threads = executor();
    check(lowbit_lut4_dequantize(&tensors, &out.tensor, &threads));
    return out.owner;
}

} // namespace lowbit

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
    m.impl("lut4_dequantize", TORCH_BOX(&lowbit::lut4_dequantize));
}
