// SPDX-License-Identifier: MIT
// A libFuzzer target: blockwise_quantize and blockwise_dequantize with descriptors and codebooks that
// may break any rule. What is accepted must equal the reference in bits.

#include "fuzzing.h"

namespace {

void quantize(Source &source, size_t n, size_t blocksize) {
    Tensor x(source, FLOATS, n, 1, false), values = codebook(source);
    Tensor q(source, UINT8, n, 1, false);
    Tensor absmax(source, FLOAT32, (n + blocksize - 1) / blocksize, 1, false);
    compare(
        {&q, &absmax},
        [&] { return lowbit_blockwise_quantize(x, values, blocksize, q, absmax, nullptr); },
        [&] { reference_blockwise_quantize(x, values, blocksize, q, absmax); });
}

void dequantize(Source &source, size_t n, size_t blocksize) {
    Tensor q(source, UINT8, n, 1, false), values = codebook(source);
    Tensor absmax(source, FLOAT32, (n + blocksize - 1) / blocksize, 1, false);
    Tensor out(source, FLOATS, n, 1, false);
    compare(
        {&out},
        [&] { return lowbit_blockwise_dequantize(q, absmax, values, blocksize, out, nullptr); },
        [&] { reference_blockwise_dequantize(q, absmax, values, blocksize, out); });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Source source(data, size);
    choose_isa(source);
    const uint8_t op = source.byte();
    const size_t n = source.byte() * 256u + source.byte();
    size_t blocksize = (size_t)32 << source.byte() % 8;
    if (source.one_in(64))
        blocksize = source.byte() + 1u;
    (op % 2 ? dequantize : quantize)(source, n % 2000, blocksize);
    return 0;
}
