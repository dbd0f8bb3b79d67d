// SPDX-License-Identifier: MIT
// What each function of ptx.cuh gives a warp that brings pseudo-random operands: recorded on a GPU,
// in golden/ptx.txt, and compared with the emulation, whose layouts are otherwise somebody's
// reading of the PTX manual.
#ifndef LOWBIT_TESTS_CUDA_PTX_GOLDEN_H
#define LOWBIT_TESTS_CUDA_PTX_GOLDEN_H

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace golden {

constexpr unsigned lanes = 32, words_in = 12, words_out = 8; // of each lane

using Operands = std::array<uint32_t, lanes * words_in>;
using Results = std::array<uint32_t, lanes * words_out>;

struct Case {
    const char *name; // the function's, and in a second word what is special about the operands
    void (*kernel)(const uint32_t *in, uint32_t *out);
    // Makes a lane's word out of random bits.
    uint32_t (*operand)(unsigned word, uint32_t bits);
    bool is_float; // results are float32 that a machine adds up or rounds in its own way
};
extern const std::vector<Case> cases;

Operands operands(const Case &c);
cudaError_t run(const Case &c, const Operands &operands, Results &results);

using Record = std::map<std::string, Results>; // by the case's name

cudaError_t record(Record &record); // of every case
std::string to_text(const Record &record);
// Whether the text is one that to_text wrote, lines with # apart.
bool from_text(const std::string &text, Record &record);

// Where results are not those recorded; empty where they are. Float sums may be off by 2^-18 of the
// sum of the magnitudes: in two steps of at most 9 addends a tensor core cuts each addend and the
// sum to 24 bits of the largest, which makes 20 * 2^-23.
std::string difference(const Case &c, const Results &results, const Results &recorded);

} // namespace golden

#endif
