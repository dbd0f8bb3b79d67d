// SPDX-License-Identifier: MIT
// A libFuzzer target: the lut4 operators with descriptors, weights and codebooks that may break any
// rule. What is accepted must equal the reference: in bits, or, products, within rounding of float64.

#include "fuzzing.h"

#include <cmath>
#include <functional>
#include <optional>

namespace {

// Turns random bytes of a float tensor into fractions, of the sizes that products are bounded for.
void make_ordinary(Tensor &tensor) {
    if (tensor.view.dtype > LOWBIT_BFLOAT16)
        return;
    const lowbit_tensor all = {tensor.bytes.data(), tensor.view.dtype, 1,
                               tensor.bytes.size() / element_sizes[tensor.view.dtype], 0};
    for (size_t i = 0; i < all.cols; i++) {
        uint16_t bits;
        std::memcpy(&bits, tensor.bytes.data() + i * element_sizes[all.dtype], sizeof bits);
        reference_set(&all, 0, i, (float)(int16_t)bits * 0x1p-15f);
    }
}

// Mostly finite.
Tensor codebook(Source &source, size_t values, bool ordinary) {
    Tensor tensor(source, FLOAT32, values, 1, false);
    if (ordinary)
        make_ordinary(tensor);
    if (source.one_in(32))
        return tensor;
    for (size_t i = 0; i + sizeof(float) <= tensor.bytes.size(); i += sizeof(float)) {
        float value;
        std::memcpy(&value, &tensor.bytes[i], sizeof value);
        if (!std::isfinite(value))
            std::memset(&tensor.bytes[i], 0, sizeof value);
    }
    return tensor;
}

// A weight of so many elements.
struct Weight {
    bool nested;
    size_t blocksize, blocks;
    Tensor packed, absmax, values;
    std::optional<Tensor> nested_absmax, nested_values, nested_offset;

    Weight(Source &source, size_t elements, size_t blocksize, bool ordinary)
        : nested(source.one_in(2)), blocksize(blocksize),
          blocks((elements + blocksize - 1) / blocksize),
          packed(source, UINT8, (elements + 1) / 2, 1, false),
          absmax(source, nested ? UINT8 : FLOAT32, blocks, 1, false),
          values(codebook(source, 16, ordinary)) {
        if (ordinary)
            make_ordinary(absmax);
        if (nested != source.one_in(64)) {
            nested_absmax.emplace(source, FLOAT32, (blocks + 255) / 256, 1, false);
            nested_values.emplace(codebook(source, 256, ordinary));
            nested_offset.emplace(source, FLOAT32, 1, 1, false);
            if (ordinary) {
                make_ordinary(*nested_absmax);
                make_ordinary(*nested_offset);
            }
        }
    }

    operator lowbit_lut4_weight() const {
        const auto pointer = [](const std::optional<Tensor> &tensor) {
            return tensor ? (const lowbit_tensor *)*tensor : nullptr;
        };
        return {packed,
                absmax,
                values,
                blocksize,
                pointer(nested_absmax),
                pointer(nested_values),
                pointer(nested_offset)};
    }
};

void quantize(Source &source, size_t n, size_t k, size_t blocksize) {
    Tensor weight(source, FLOATS, n, k, false), values = codebook(source, 16, false);
    Tensor packed(source, UINT8, (n * k + 1) / 2, 1, false);
    Tensor absmax(source, FLOAT32, (n * k + blocksize - 1) / blocksize, 1, false);
    compare(
        {&packed, &absmax},
        [&] { return lowbit_lut4_quantize(weight, values, blocksize, packed, absmax, nullptr); },
        [&] { reference_lut4_quantize(weight, values, blocksize, packed, absmax); });
}

void dequantize(Source &source, size_t n, size_t k, size_t blocksize) {
    const Weight weight(source, n * k, blocksize, false);
    const lowbit_lut4_weight tensors = weight;
    Tensor out(source, FLOATS, n, k, false);
    compare(
        {&out}, [&] { return lowbit_lut4_dequantize(&tensors, out, nullptr); },
        [&] { reference_lut4_dequantize(&tensors, out); });
}

// A result y of a sum of so many terms, in fp32.
void expect_close(const reference_sum &sum, size_t terms, lowbit_dtype dtype, float y) {
    const double relative = dtype == LOWBIT_FLOAT32   ? 0x1p-24
                            : dtype == LOWBIT_FLOAT16 ? 0x1p-11
                                                      : 0x1p-8;
    const double bound = (double)(terms + 16) * (0x1p-24 * sum.magnitude + 0x1p-118);
    const double rounding = (std::fabs(sum.value) + bound) * relative + 0x1p-25;
    expect(std::fabs(y - sum.value) <= bound + rounding);
}

// Runs the library on a y between rows of which nothing may change, and compares each element.
void product(Tensor &y, const std::function<lowbit_status()> &library, size_t terms,
             const std::function<reference_sum(size_t, size_t)> &reference) {
    const std::vector<uint8_t> before = y.bytes;
    const lowbit_status status = library();
    if (status != LOWBIT_OK) {
        expect(status == LOWBIT_INVALID_ARGUMENT && *lowbit_last_error());
        expect(y.bytes == before);
        return;
    }
    const size_t element = element_sizes[y.view.dtype];
    for (size_t i = 0; i < y.bytes.size(); i++)
        expect(i / element % std::max(y.view.stride, (size_t)1) < y.view.cols ||
               y.bytes[i] == before[i] || y.view.rows < 2);
    for (size_t row = 0; row < y.view.rows; row++)
        for (size_t col = 0; col < y.view.cols; col++)
            expect_close(reference(row, col), terms, y.view.dtype, reference_get(y, row, col));
}

struct Workspace {
    size_t size;
    void *data;
    explicit Workspace(size_t size) : size(size), data(std::aligned_alloc(64, size)) {}
    ~Workspace() { std::free(data); }
};

void linear(Source &source, size_t n, size_t k, size_t blocksize) {
    const size_t m = source.byte() % 40;
    Tensor x(source, FLOATS, m, k, false), bias(source, FLOATS, n, 1, true);
    make_ordinary(x);
    make_ordinary(bias);
    const Weight weight(source, n * k, blocksize, true);
    Tensor y(source, FLOATS, m, n, false);
    const Workspace workspace(lowbit_lut4_linear_workspace_size(m, n, k, 1));
    const lowbit_lut4_linear_args args{x, weight, bias, y};
    product(
        y, [&] { return lowbit_lut4_linear(&args, nullptr, workspace.data, workspace.size); },
        x.view.cols,
        [&](size_t row, size_t col) {
            const char *kernel =
                lowbit_lut4_linear_ukernel(x.view.dtype, x.view.rows, x.view.cols, blocksize);
            return reference_lut4_linear(&args, row, col, kernel[0] == 'b');
        });
}

void grad_input(Source &source, size_t n, size_t k, size_t blocksize) {
    const size_t m = source.byte() % 40;
    Tensor grad_output(source, FLOATS, m, n, false);
    make_ordinary(grad_output);
    const Weight weight(source, n * k, blocksize, true);
    Tensor y(source, FLOATS, m, k, false);
    const Workspace workspace(lowbit_lut4_linear_grad_input_workspace_size(m, n, k, 1));
    const lowbit_lut4_linear_grad_input_args args{grad_output, weight, y};
    product(
        y,
        [&] {
            return lowbit_lut4_linear_grad_input(&args, nullptr, workspace.data, workspace.size);
        },
        grad_output.view.cols,
        [&](size_t row, size_t col) {
            return reference_lut4_linear_grad_input(&args, row, col,
                                                    grad_output.view.dtype == LOWBIT_BFLOAT16 &&
                                                        lowbit_cpu_isa() & LOWBIT_ISA_AVX512BF16);
        });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Source source(data, size);
    choose_isa(source);
    const uint8_t op = source.byte();
    size_t n = source.byte() % 40, k = source.byte() % 200;
    size_t blocksize = (size_t)32 << source.byte() % 8;
    if (source.one_in(2)) // whole blocks in each row
        k = std::max(k / 32, (size_t)1) * std::min(blocksize, (size_t)512);
    if (source.one_in(64))
        blocksize = source.byte() + 1u;
    void (*const operators[])(Source &, size_t, size_t, size_t) = {quantize, dequantize, linear,
                                                                   grad_input};
    operators[op % 4](source, n, k, blocksize);
    return 0;
}
