// SPDX-License-Identifier: MIT
// The instructions of ptx.cuh: put together to products of matrices that plain loops can check, and
// each by itself as a GPU has recorded it.

#include "ptx_golden.h"
#include "ptx_kernels.h"
#include "testing.h"

#include "../../kernels/cpu/common/floats.h"
#include "../c/samples.h"

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

namespace {

std::string read(const std::string &path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

// What a GPU has recorded; empty if none has.
golden::Record recorded() {
    const std::string path = LOWBIT_SOURCE_DIR "/tests/cuda/golden/ptx.txt";
    golden::Record record;
    EXPECT_TRUE(!std::ifstream(path) || golden::from_text(read(path), record)) << path;
    return record;
}

TEST(Ptx, ProductOfInt8) {
    in_every_order([] {
        Random random(1);
        std::vector<int8_t> a(16 * 32), b(16 * 32);
        for (auto *values : {&a, &b})
            for (int8_t &value : *values)
                value = (int8_t)random.bits();
        const Device<int8_t> device_a(a), device_b(b);
        const Device<int32_t> device_d(16 * 16);
        ASSERT_CUDA(product_s8(device_a.data(), device_b.data(), device_d.data()));
        const std::vector<int32_t> d = device_d.get();
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                int32_t expected = 0;
                for (int k = 0; k < 32; k++)
                    expected += a[32 * i + k] * b[32 * j + k];
                EXPECT_EQ(d[16 * i + j], expected) << i << ", " << j;
            }
    });
}

// Small whole numbers: every sum is exact, whatever its order.
template <typename Product, typename Convert>
void expect_product(Product product, Convert to_half) {
    in_every_order([&] {
        Random random(2);
        std::vector<float> a(16 * 16), b(16 * 16);
        std::vector<uint16_t> half_a, half_b;
        for (float &value : a)
            half_a.push_back(to_half(value = (float)random.below(257) - 128));
        for (float &value : b)
            half_b.push_back(to_half(value = (float)random.below(257) - 128));
        const Device<uint16_t> device_a(half_a), device_b(half_b);
        const Device<float> device_d(16 * 16);
        ASSERT_CUDA(product(device_a.data(), device_b.data(), device_d.data()));
        const std::vector<float> d = device_d.get();
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                float expected = 0;
                for (int k = 0; k < 16; k++)
                    expected += a[16 * i + k] * b[16 * k + j];
                EXPECT_EQ(d[16 * i + j], expected) << i << ", " << j;
            }
    });
}

TEST(Ptx, ProductOfFp16) {
    expect_product(product_f16, lowbit_f32_to_f16);
}
TEST(Ptx, ProductOfBf16) {
    expect_product(product_bf16, lowbit_f32_to_bf16);
}

class PtxGolden : public testing::TestWithParam<size_t> {};

TEST_P(PtxGolden, IsAsOnAGpu) {
    const golden::Case &c = golden::cases[GetParam()];
    const golden::Record all = recorded();
    if (!all.count(c.name))
        GTEST_SKIP() << "no GPU has recorded " << c.name << ": run tests/gpu/run on one, and keep "
                     << "the ptx.txt that it leaves as tests/cuda/golden/ptx.txt";
    in_every_order([&] {
        golden::Results results;
        ASSERT_CUDA(golden::run(c, golden::operands(c), results));
        EXPECT_EQ(golden::difference(c, results, all.at(c.name)), "");
    });
}
INSTANTIATE_TEST_SUITE_P(Each, PtxGolden, testing::Range((size_t)0, golden::cases.size()),
                         [](const auto &info) {
                             std::string name = golden::cases[info.param].name;
                             std::replace(name.begin(), name.end(), ' ', '_');
                             return name;
                         });

TEST(Plain, RootsAndQuotientsAreRoundedCorrectly) {
    const Device<uint32_t> wrong(std::vector<uint32_t>{0, 0});
    ASSERT_CUDA(wrong_roots(wrong.data()));
    EXPECT_EQ(wrong.get()[0], 0u);
    EXPECT_LE(wrong.get()[1], 2u); // the two that plain.cuh names
    const Device<uint32_t> wrong_too(std::vector<uint32_t>{0, 0});
    ASSERT_CUDA(wrong_quotients(4000000, wrong_too.data()));
    EXPECT_EQ(wrong_too.get(), (std::vector<uint32_t>{0, 0}));
}

// All cases of the record are still there, and all functions of ptx.cuh have a case but those
// without a result of their own: one that is no instruction, and two that order launches.
TEST(PtxGolden, IsComplete) {
    const std::string header = read(LOWBIT_SOURCE_DIR "/kernels/cuda/common/ptx.cuh");
    const std::regex function("__forceinline__ [^(]*?(\\w+)\\(");
    std::set<std::string> expected, found, names;
    for (std::sregex_iterator i(header.begin(), header.end(), function), end; i != end; ++i)
        expected.insert((*i)[1]);
    for (const char *without : {"shared_address", "begin_next", "wait_for_last"})
        EXPECT_EQ(expected.erase(without), 1u) << without;
    for (const golden::Case &c : golden::cases) {
        const std::string name = c.name;
        names.insert(name);
        found.insert(name.substr(0, name.find(' ')));
    }
    EXPECT_EQ(found, expected);
    for (const auto &[name, results] : recorded())
        EXPECT_TRUE(names.count(name)) << name;
}

TEST(PtxGolden, FindsWhatDiffers) {
    golden::Record record, again;
    ASSERT_CUDA(golden::record(record));
    const std::string text = golden::to_text(record);
    ASSERT_TRUE(golden::from_text("# of some GPU\n" + text, again));
    EXPECT_EQ(record, again);
    EXPECT_FALSE(golden::from_text(text.substr(0, text.size() - 9), again));
    EXPECT_FALSE(golden::from_text("", again = {}));
    for (const golden::Case &c : golden::cases) {
        SCOPED_TRACE(c.name);
        const golden::Results &results = record[c.name];
        golden::Results other = results;
        EXPECT_EQ(golden::difference(c, results, other), "");
        other[8 * 17 + 1] ^= 1; // the last bit, which a float sum may have otherwise
        EXPECT_EQ(golden::difference(c, results, other).empty(), c.is_float);
        other[8 * 17 + 1] ^= 1 << 20;
        EXPECT_NE(golden::difference(c, results, other), "");
        other = results;
        std::swap(other[0], other[8]); // of two lanes
        EXPECT_NE(golden::difference(c, results, other), "");
    }
}

} // namespace
