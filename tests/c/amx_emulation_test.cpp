// SPDX-License-Identifier: MIT
// The emulation of AMX stops where the processor would: tests that run on it mean something.

#include "emulation/amx.h"

#include <gtest/gtest.h>

namespace {

struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    Config &tile(int number, uint8_t tile_rows, uint16_t tile_row_bytes) {
        rows[number] = tile_rows;
        row_bytes[number] = tile_row_bytes;
        return *this;
    }
};

class AmxEmulation : public testing::Test {
    void SetUp() override { testing::GTEST_FLAG(death_test_style) = "threadsafe"; }
    void TearDown() override { emulated_tile_release(); }
};

TEST_F(AmxEmulation, MultipliesSmallTiles) {
    const int8_t a[2][8] = {{1, 2, 3, 4, 5, 6, 7, 8}, {-128, 127, 0, 0, 0, 0, 0, 1}};
    const int8_t b[2][4] = {{1, 1, 1, 1}, {2, 2, 2, -128}}; // one column of 8
    int32_t c[2] = {1000, -1};
    emulated_tile_loadconfig(&Config().tile(0, 2, 4).tile(1, 2, 8).tile(2, 2, 4));
    emulated_tile_loadd(0, c, 4);
    emulated_tile_loadd(1, a, 8);
    emulated_tile_loadd(2, b, 4);
    emulated_tile_dpbssd(0, 1, 2);
    emulated_tile_stored(0, c, 4);
    EXPECT_EQ(c[0], 1000 + 10 + 36 - 1024);
    EXPECT_EQ(c[1], -1 - 1 - 128);
}

TEST_F(AmxEmulation, StopsWithoutConfiguration) {
    EXPECT_DEATH(emulated_tile_zero(0), "not configured");
    emulated_tile_loadconfig(&Config().tile(0, 16, 64));
    emulated_tile_zero(0);
    EXPECT_DEATH(emulated_tile_zero(1), "not configured");
    emulated_tile_release();
    EXPECT_DEATH(emulated_tile_zero(0), "not configured");
}

TEST_F(AmxEmulation, StopsAtBadConfigurations) {
    EXPECT_DEATH(emulated_tile_loadconfig(&Config().tile(0, 17, 64)), "at most 16 rows of 64");
    EXPECT_DEATH(emulated_tile_loadconfig(&Config().tile(0, 16, 65)), "at most 16 rows of 64");
    EXPECT_DEATH(emulated_tile_loadconfig(&Config().tile(0, 16, 0)), "both rows and columns");
    EXPECT_DEATH(emulated_tile_loadconfig(&Config().tile(8, 16, 64)), "eight tiles");
    Config reserved;
    reserved.reserved[3] = 1;
    EXPECT_DEATH(emulated_tile_loadconfig(&reserved), "reserved");
    Config palette;
    palette.palette = 2;
    EXPECT_DEATH(emulated_tile_loadconfig(&palette), "palette 1");
}

TEST_F(AmxEmulation, StopsAtShapesThatDisagree) {
    emulated_tile_loadconfig(
        &Config().tile(0, 16, 64).tile(1, 15, 64).tile(2, 16, 64).tile(3, 8, 64));
    EXPECT_DEATH(emulated_tile_dpbssd(0, 1, 2), "shapes");
    EXPECT_DEATH(emulated_tile_dpbssd(0, 2, 3), "shapes");
    EXPECT_DEATH(emulated_tile_dpbssd(0, 2, 2), "differ");
}

} // namespace
