// SPDX-License-Identifier: MIT
// A libFuzzer target: int8_quantize, int8_requantize_ and int8_linear with descriptors that may break
// any rule. What is accepted must equal the reference in bits.

#include "fuzzing.h"

namespace {

void quantize(Source &source, size_t m, size_t k, float threshold) {
    Tensor x(source, FLOATS, m, k, false), q(source, INT8, m, k, false);
    Tensor absmax(source, SCALES, m, 1, false);
    compare(
        {&q, &absmax}, [&] { return lowbit_int8_quantize(x, threshold, q, absmax, nullptr); },
        [&] { expect(reference_int8_quantize(x, threshold, q, absmax)); });
}

void requantize(Source &source, size_t n, size_t k, float) {
    Tensor master(source, FLOATS, n, k, false), q(source, INT8, n, k, false);
    Tensor absmax(source, SCALES, n, 1, false);
    compare(
        {&q, &absmax}, [&] { return lowbit_int8_requantize(q, absmax, master, nullptr); },
        [&] { expect(reference_int8_quantize(master, 0, q, absmax)); });
}

void linear(Source &source, size_t m, size_t k, float threshold) {
    const size_t n = source.byte() % 80;
    Tensor x(source, FLOATS, m, k, false), weight(source, INT8, n, k, false);
    Tensor absmax(source, SCALES, n, 1, false), offset(source, SCALES, n, 1, true);
    Tensor bias(source, FLOATS, n, 1, true), y(source, FLOATS, m, n, false);
    std::replace(weight.bytes.begin(), weight.bytes.end(), (uint8_t)-128, (uint8_t)-127);
    const lowbit_int8_linear_args args{x, weight, absmax, offset, bias, threshold, y};
    const size_t size = lowbit_int8_linear_workspace_size(m, n, k, 1);
    void *workspace = std::aligned_alloc(64, size);
    compare(
        {&y}, [&] { return lowbit_int8_linear(&args, nullptr, workspace, size); },
        [&] { reference_int8_linear(&args); });
    std::free(workspace);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Source source(data, size);
    choose_isa(source);
    const uint8_t op = source.byte(), threshold_kind = source.byte();
    std::vector<uint8_t> bits(sizeof(float));
    source.fill(bits);
    float threshold = 6;
    if (threshold_kind % 4 == 0)
        threshold = 0;
    else if (threshold_kind % 4 == 1)
        std::memcpy(&threshold, bits.data(), sizeof threshold);
    const size_t m = source.byte() % 40, k = source.byte() % 200;
    const decltype(&linear) calls[] = {quantize, linear, requantize};
    calls[op % 3](source, m, k, threshold);
    return 0;
}
