// SPDX-License-Identifier: MIT
// The levels of lowbit_cpu_isa and their cap. Says which of them the other tests run.

#include "testing.h"

namespace {

const int levels = 5;
const char *const names[levels] = {"scalar", "avx2", "avx512vnni", "avx512bf16", "amx"};

TEST(Isa, LevelsOfThisMachine) {
    const uint32_t isa = (isa_levels(), lowbit_cpu_isa());
    EXPECT_TRUE(isa & LOWBIT_ISA_SCALAR);
    EXPECT_EQ(isa & (isa + 1), 0u) << "a level without one below it: " << isa;
    for (int i = 0; i < levels; i++) {
        EXPECT_STREQ(lowbit_cpu_isa_name(1u << i), names[i]);
        std::printf("%s: %s\n", names[i], isa >> i & 1 ? "tested" : "skipped, not on this machine");
    }
    EXPECT_EQ(lowbit_cpu_isa_name(3), nullptr);
    EXPECT_EQ(lowbit_cpu_isa_name(1u << levels), nullptr);
}

TEST(Isa, CapKeepsTheLevelsBelow) {
    const uint32_t all = (isa_levels(), lowbit_cpu_isa());
    for (int i = 0; i < levels; i++) {
        ASSERT_EQ(lowbit_cpu_isa_cap(names[i]), LOWBIT_OK);
        EXPECT_EQ(lowbit_cpu_isa(), all & ((2u << i) - 1));
    }
    ASSERT_EQ(lowbit_cpu_isa_cap("scalar"), LOWBIT_OK);
    EXPECT_EQ(lowbit_cpu_isa_cap("sse"), LOWBIT_INVALID_ARGUMENT);
    EXPECT_NE(std::string(lowbit_last_error()).find("\"sse\""), std::string::npos);
    EXPECT_EQ(lowbit_cpu_isa(), (uint32_t)LOWBIT_ISA_SCALAR) << "a refused cap changed something";
    ASSERT_EQ(lowbit_cpu_isa_cap(nullptr), LOWBIT_OK);
    EXPECT_EQ(lowbit_cpu_isa(), all);
}

TEST(Isa, KernelsAreNamedForReports) {
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (size_t m : {0, 1, 8, 9, 1000}) {
            const char *name = lowbit_int8_linear_ukernel(m, 4096);
            ASSERT_NE(name, nullptr);
            EXPECT_NE(std::strstr(name, "__"), nullptr) << name;
        }
    }
    ASSERT_EQ(lowbit_cpu_isa_cap("scalar"), LOWBIT_OK);
    EXPECT_NE(std::strstr(lowbit_int8_linear_ukernel(16, 4096), "__scalar"), nullptr);
    lowbit_cpu_isa_cap(nullptr);
}

} // namespace
