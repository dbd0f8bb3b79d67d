// SPDX-License-Identifier: MIT
// The emulator finds what is planted, in whatever order the threads run, and nothing in a kernel
// that is right; and counts what memory has to do.

#include "planted_bugs.h"
#include "testing.h"

#include <algorithm>
#include <numeric>

namespace {

struct Case {
    const char *name;
    Plant plant;
    emu::Bug bug;
};
void PrintTo(const Case &c, std::ostream *out) {
    *out << c.name;
}

const Case plants[] = {
#define CASE(plant, bug) {#plant, Plant::plant, emu::Bug::bug},
    PLANTED_BUGS(CASE)
#undef CASE
};

// A sum of n numbers by the kernel.
struct Sum {
    explicit Sum(size_t n)
        : numbers(n), partial((n + 511) / 512), arrived(std::vector<uint32_t>{0}), total(1) {
        std::iota(numbers.begin(), numbers.end(), -100);
        expected = std::accumulate(numbers.begin(), numbers.end(), 0);
    }
    cudaError_t run(Plant plant) {
        const Device<int32_t> x(numbers);
        return sum(plant, x.data(), x.size(), partial.data(), arrived.data(), total.data());
    }

    std::vector<int32_t> numbers;
    int32_t expected;
    Device<int32_t> partial;
    Device<uint32_t> arrived;
    Device<int32_t> total;
};

TEST(Emulator, ReportsNothingWhereNothingIsPlanted) {
    for (size_t n : {1, 4, 511, 512, 513, 1023, 3000, 40000})
        in_every_order([&] {
            Sum s(n);
            for (int times = 0; times < 2; times++) {
                EXPECT_CUDA(s.run(Plant::nothing));
                EXPECT_EQ(s.total.get()[0], s.expected);
            }
        });
}

class Planted : public testing::TestWithParam<Case> {};

TEST_P(Planted, IsFoundInEveryOrder) {
    for (emu::Order order : {emu::Order::forward, emu::Order::reverse, emu::Order::shuffled}) {
        emu::reset();
        emu::settings.order = order;
        Sum(1030).run(GetParam().plant);
        bool found = false;
        for (const emu::Report &report : emu::reports())
            found |= report.bug == GetParam().bug;
        EXPECT_TRUE(found) << order_names[(int)order] << ": " << emu::reports().size()
                           << " others reported:" << all_reports();
    }
}

INSTANTIATE_TEST_SUITE_P(Emulator, Planted, testing::ValuesIn(plants),
                         [](const auto &info) { return std::string(info.param.name); });

TEST(Emulator, CountsSectors) {
    const Device<int32_t> x(std::vector<int32_t>(1024)), y(32);
    emu::settings.count = true;
    for (int stride : {1, 2, 4, 8, 32}) {
        emu::reset();
        EXPECT_CUDA(gather_global(stride, x.data(), y.data()));
        const int sectors = std::min(4 * stride, 32); // of 32 bytes, to read 128 bytes
        EXPECT_EQ(emu::worst(emu::Space::global).ratio(), sectors / 4.0) << "stride " << stride;
        EXPECT_EQ(emu::total(emu::Space::global).units, sectors + 4u) << "stride " << stride;
    }
    emu::settings.count = false;
}

TEST(Emulator, CountsBankConflicts) {
    const Device<int32_t> x(std::vector<int32_t>(1024)), y(32);
    emu::settings.count = true;
    for (int stride : {0, 1, 2, 3, 8, 31, 32}) {
        emu::reset();
        EXPECT_CUDA(gather_shared(stride, x.data(), y.data()));
        const int passes = stride ? std::gcd(stride, 32) : 1; // zero: all read one word
        EXPECT_EQ(emu::worst(emu::Space::shared).ratio(), passes) << "stride " << stride;
        EXPECT_EQ(emu::total(emu::Space::shared).units, passes + 32u) << "stride " << stride;
    }
    emu::settings.count = false;
}

TEST(Emulator, RefusesLaunchesThatADeviceRefuses) {
    EXPECT_EQ(nothing(0, 32, 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(nothing(1, 0, 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(nothing(1, 1025, 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(nothing(1, dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(nothing(dim3(1, 65536), 32, 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
    EXPECT_CUDA(nothing(1, 32, 100 << 10));
    EXPECT_EQ(nothing(1, 32, (227 << 10) + 1), cudaErrorInvalidValue);
    emu::reset();
}

TEST(Emulator, RunsBlocksFarInALargeGrid) {
    const size_t n = ((size_t)1 << 31) + 5;
    const Device<int32_t> x(n), partial((n + 511) / 512), total(1);
    const Device<uint32_t> arrived(std::vector<uint32_t>{0});
    const std::vector<int32_t> tail(5, 7);
    EXPECT_CUDA(cudaMemcpy(x.data() + n - 5, tail.data(), 20, cudaMemcpyHostToDevice));
    emu::reset();
    emu::settings.first_block = n / 512;
    EXPECT_CUDA(sum(Plant::nothing, x.data(), n, partial.data(), arrived.data(), total.data()));
    emu::settings.first_block = 0;
    EXPECT_TRUE(emu::reports().empty()) << all_reports();
    int32_t last = 0;
    EXPECT_CUDA(cudaMemcpy(&last, partial.data() + n / 512, 4, cudaMemcpyDeviceToHost));
    EXPECT_EQ(last, 35);
}

} // namespace
