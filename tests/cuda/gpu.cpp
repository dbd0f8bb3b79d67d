// SPDX-License-Identifier: MIT
// emulation/emulator.h for the same tests on a GPU, where nobody watches: no reports, no counters.
// All tests are skipped where there is no GPU.

#include "emulation/emulator.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace emu {

Settings settings;

std::string Report::text() const {
    return what;
}
const std::vector<Report> &reports() {
    static const std::vector<Report> none;
    return none;
}
void reset() {}

std::string Traffic::text() const {
    return "";
}
Traffic total(Space space) {
    return {space, nullptr};
}
Traffic worst(Space space) {
    return {space, nullptr};
}

} // namespace emu

namespace {

class Gpu : public testing::Environment {
    void SetUp() override {
        int devices = 0;
        const cudaError_t error = cudaGetDeviceCount(&devices);
        if (error != cudaSuccess)
            GTEST_SKIP() << "no GPU: " << cudaGetErrorString(error);
    }
};

const auto *const gpu = testing::AddGlobalTestEnvironment(new Gpu);

} // namespace
