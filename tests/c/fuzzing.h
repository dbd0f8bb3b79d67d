// SPDX-License-Identifier: MIT
// What the libFuzzer targets share: descriptors that may break any rule, over buffers of just the
// size that they describe, and the comparison of a call with the reference.
#ifndef LOWBIT_TESTS_FUZZING_H
#define LOWBIT_TESTS_FUZZING_H

#include "reference.h"

#include "lowbit/lowbit.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

// Takes the fuzzer's bytes one after the other; zeros when they run out.
class Source {
  public:
    Source(const uint8_t *data, size_t size) : data_(data), size_(size) {}

    uint8_t byte() { return size_ ? size_--, *data_++ : 0; }
    bool one_in(unsigned n) { return byte() % n == n - 1; }
    // The next few bytes, over and over.
    void fill(std::vector<uint8_t> &bytes) {
        const size_t wanted = 1 + (size_t)byte(), period = std::min(wanted, size_);
        for (size_t i = 0; period && i < bytes.size(); i++)
            bytes[i] = data_[i % period];
        data_ += period;
        size_ -= period;
    }

  private:
    const uint8_t *data_;
    size_t size_;
};

const size_t element_sizes[] = {4, 2, 2, 1, 4, 1};

struct Tensor {
    std::vector<uint8_t> bytes;
    lowbit_tensor view;
    bool present;

    // Mostly a dtype of the mask and the size asked for, sometimes others.
    Tensor(Source &source, unsigned dtypes, size_t rows, size_t cols, bool optional) {
        view.rows = source.one_in(64) ? source.byte() % 40 : rows;
        view.cols = source.one_in(64) ? source.byte() % 200 : cols;
        view.stride = view.cols + (source.one_in(16) ? source.byte() % 40 : 0);
        unsigned dtype = source.byte() % 6;
        if (!(dtypes >> dtype & 1) && !source.one_in(64))
            dtype = (unsigned)__builtin_ctz(dtypes);
        view.dtype = (lowbit_dtype)dtype;
        const size_t size = view.rows ? (view.rows - 1) * view.stride + view.cols : 0;
        bytes.resize(size * element_sizes[view.dtype]);
        source.fill(bytes);
        view.data = bytes.data();
        if (source.one_in(64))
            view.stride = source.byte() % (view.stride + 1);
        present = !source.one_in(optional ? 2 : 128);
    }

    operator const lowbit_tensor *() const { return present ? &view : nullptr; }
};

enum : unsigned { FLOATS = 7, SCALES = 3, FLOAT32 = 1, INT8 = 8, UINT8 = 32 };

// 256 values, mostly finite and in order, that the fuzzer chooses by their bits or as fractions.
inline Tensor codebook(Source &source, bool negative = true) {
    Tensor tensor(source, FLOAT32, 256, 1, false);
    const bool bits = source.one_in(2), disorder = source.one_in(16);
    if (tensor.bytes.size() < 256 * sizeof(float))
        return tensor;
    auto *values = reinterpret_cast<float *>(tensor.bytes.data());
    for (size_t i = 0; i < 256; i++) {
        int32_t whole;
        std::memcpy(&whole, &values[i], sizeof whole);
        if (!bits)
            values[i] = (float)whole * 0x1p-31f;
        if (!std::isfinite(values[i]) && !disorder)
            values[i] = 0;
        if (!negative && !disorder)
            values[i] = std::fabs(values[i]);
    }
    if (!disorder)
        std::sort(values, values + 256);
    return tensor;
}

inline void expect(bool holds) {
    if (!holds)
        std::abort();
}

// Runs the library and then the reference on the same outputs. A refusal leaves them as they were.
template <typename Library, typename Reference>
void compare(const std::vector<Tensor *> &outputs, Library library, Reference reference) {
    std::vector<std::vector<uint8_t>> before, after;
    for (Tensor *output : outputs)
        before.push_back(output->bytes);
    const lowbit_status status = library();
    for (Tensor *output : outputs)
        after.push_back(output->bytes);
    if (status != LOWBIT_OK) {
        expect(status == LOWBIT_INVALID_ARGUMENT && *lowbit_last_error());
        expect(after == before);
        return;
    }
    for (size_t i = 0; i < outputs.size(); i++) // in place: the descriptors point there
        std::copy(before[i].begin(), before[i].end(), outputs[i]->bytes.begin());
    reference();
    for (size_t i = 0; i < outputs.size(); i++)
        expect(outputs[i]->bytes == after[i]);
}

// Lets the fuzzer choose the instruction set.
inline void choose_isa(Source &source) {
    static const char *const levels[] = {"scalar", "avx2", "avx512vnni", nullptr};
    expect(lowbit_cpu_isa_cap(levels[source.byte() % 4]) == LOWBIT_OK);
}

#endif
