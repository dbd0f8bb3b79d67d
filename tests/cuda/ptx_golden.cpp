// SPDX-License-Identifier: MIT

#include "ptx_golden.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>

namespace golden {

namespace {

float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace

// SplitMix64, from the name on: a new case changes no other.
Operands operands(const Case &c) {
    uint64_t state = 0;
    for (const char *p = c.name; *p; p++)
        state = 31 * state + (unsigned char)*p;
    Operands words;
    for (size_t i = 0; i < words.size(); i++) {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        words[i] = c.operand(i % words_in, (uint32_t)(z >> 32));
    }
    return words;
}

cudaError_t record(Record &record) {
    for (const Case &c : cases) {
        const cudaError_t error = run(c, operands(c), record[c.name]);
        if (error)
            return error;
    }
    return cudaSuccess;
}

std::string to_text(const Record &record) {
    std::string text;
    for (const auto &[name, results] : record) {
        text += name + "\n";
        for (size_t i = 0; i < results.size(); i++) {
            char word[10];
            std::snprintf(word, sizeof word, "%08x%c", results[i],
                          (i + 1) % words_out ? ' ' : '\n');
            text += word;
        }
    }
    return text;
}

bool from_text(const std::string &text, Record &record) {
    std::istringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
        if (line[0] == '#')
            continue;
        lines >> std::hex;
        for (uint32_t &word : record[line])
            lines >> word;
        if (!std::getline(lines, line) || !line.empty()) // the rest of the last one
            return false;
    }
    return !record.empty();
}

std::string difference(const Case &c, const Results &results, const Results &recorded) {
    Results magnitudes = {};
    if (c.is_float) {
        Operands positive = operands(c);
        for (size_t i = 0; i < positive.size(); i++)
            positive[i] &= i % words_in < 6 ? 0x7fff7fff : 0x7fffffff;
        if (const cudaError_t error = run(c, positive, magnitudes))
            return cudaGetErrorString(error);
    }
    std::ostringstream text;
    for (size_t i = 0; i < results.size(); i++) {
        const uint32_t a = results[i], b = recorded[i];
        const float most = 0x1p-18f * as_float(magnitudes[i]);
        if (a != b && !(c.is_float && std::fabs(as_float(a) - as_float(b)) <= most)) {
            text << "lane " << i / words_out << ", result " << i % words_out << ": " << std::hex
                 << a << std::dec;
            if (c.is_float)
                text << " (" << as_float(a) << ")";
            text << ", recorded " << std::hex << b << std::dec;
            if (c.is_float)
                text << " (" << as_float(b) << " +- " << most << ")";
            text << "\n";
        }
    }
    return text.str();
}

} // namespace golden
