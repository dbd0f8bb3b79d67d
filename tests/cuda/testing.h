// SPDX-License-Identifier: MIT
// What the tests of CUDA kernels share: memory on the device, and running in every order of
// threads.
#ifndef LOWBIT_TESTS_CUDA_TESTING_H
#define LOWBIT_TESTS_CUDA_TESTING_H

#include "emulation/emulator.h"

#include "../c/testing.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#define ASSERT_CUDA(call) ASSERT_EQ(call, cudaSuccess)
#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess)

// An array on the device, uninitialised or a copy, that ends where the memory ends. It begins
// `shift` bytes past a multiple of 256.
template <typename T> class Device {
  public:
    explicit Device(size_t size, size_t shift = 0) : size_(size), shift_(shift) {
        EXPECT_CUDA(cudaMalloc((void **)&memory_, shift + size * sizeof(T)));
    }
    explicit Device(const std::vector<T> &values, size_t shift = 0) : Device(values.size(), shift) {
        set(values);
    }
    ~Device() { EXPECT_CUDA(cudaFree(memory_)); }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;

    T *data() const { return reinterpret_cast<T *>(memory_ + shift_); }
    size_t size() const { return size_; }

    void set(const std::vector<T> &values) {
        EXPECT_CUDA(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get() const {
        std::vector<T> values(size_);
        EXPECT_CUDA(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

  private:
    char *memory_ = nullptr;
    size_t size_, shift_;
};

// A tensor's elements on the device, and what stands there later.
class DeviceTensor {
  public:
    explicit DeviceTensor(const Tensor &tensor, size_t shift = 0, bool copied = true)
        : view_(*static_cast<const lowbit_tensor *>(tensor)),
          bytes_(tensor.buffer().size(), shift) {
        view_.data = bytes_.data();
        const auto *data = tensor.buffer().as<uint8_t>();
        if (copied)
            bytes_.set(std::vector<uint8_t>(data, data + bytes_.size()));
    }
    template <typename T> T *data() const { return reinterpret_cast<T *>(bytes_.data()); }
    operator const lowbit_tensor *() const { return &view_; }
    void get(Tensor &tensor) const {
        const std::vector<uint8_t> bytes = bytes_.get();
        std::copy(bytes.begin(), bytes.end(), tensor.buffer().as<uint8_t>());
    }

  private:
    lowbit_tensor view_;
    Device<uint8_t> bytes_;
};

inline std::string all_reports() {
    std::string text;
    for (const emu::Report &report : emu::reports())
        text += "\n  " + report.text();
    return text;
}

const char *const order_names[] = {"forward", "reverse", "shuffled"};

// Calls run() in each order of threads and expects no report.
template <typename Run> void in_every_order(Run run) {
    for (emu::Order order : {emu::Order::forward, emu::Order::reverse, emu::Order::shuffled}) {
        SCOPED_TRACE(order_names[(int)order]);
        emu::reset();
        emu::settings.order = order;
        run();
        EXPECT_CUDA(cudaDeviceSynchronize());
        EXPECT_TRUE(emu::reports().empty()) << all_reports();
        if (testing::Test::HasFailure())
            return;
    }
}

#endif
