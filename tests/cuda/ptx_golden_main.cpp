// SPDX-License-Identifier: MIT
// ptx_golden         prints what the functions of ptx.cuh give here
// ptx_golden FILE    compares it with such a record
// Needs neither CMake nor GoogleTest: tests/gpu/run compiles it.

#include "ptx_golden.h"

#include <cstdio>
#include <fstream>
#include <sstream>

int main(int argc, char **argv) {
    golden::Record found, recorded;
    if (const cudaError_t error = golden::record(found)) {
        std::fprintf(stderr, "ptx_golden: %s\n", cudaGetErrorString(error));
        return 1;
    }
    if (argc < 2) {
        std::fputs(golden::to_text(found).c_str(), stdout);
        return 0;
    }
    std::ostringstream text;
    text << std::ifstream(argv[1]).rdbuf();
    if (!golden::from_text(text.str(), recorded)) {
        std::fprintf(stderr, "ptx_golden: %s is no record\n", argv[1]);
        return 1;
    }
    int failures = 0;
    for (const golden::Case &c : golden::cases) {
        const auto place = recorded.find(c.name);
        const std::string difference = place == recorded.end()
                                           ? "not recorded\n"
                                           : golden::difference(c, found[c.name], place->second);
        std::printf("%-28s %s\n%s", c.name, difference.empty() ? "agrees" : "DIFFERS",
                    difference.c_str());
        failures += !difference.empty();
    }
    return failures != 0;
}
