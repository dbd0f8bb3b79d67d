// SPDX-License-Identifier: MIT
// Coalescing and bank conflicts. The i-th accesses of an instruction by the lanes of a warp,
// counted since the warp last came together, are taken for one access by the warp.

#include "machine.h"

#include <algorithm>
#include <set>

namespace emu {

namespace {

struct Lane {
    unsigned index;
    uint64_t address;
    uint32_t size;
};

// A cp.async reads one space and writes the other.
using Place = std::pair<Site, Space>;
std::map<Place, Traffic> counted;

void count_sectors(const std::vector<Lane> &lanes, Traffic &traffic) {
    std::set<uint64_t> sectors, bytes;
    for (const Lane &lane : lanes)
        for (uint64_t byte = lane.address; byte < lane.address + lane.size; byte++) {
            sectors.insert(byte / 32);
            bytes.insert(byte);
        }
    traffic.units += sectors.size();
    traffic.minimum += (bytes.size() + 31) / 32;
}

// A warp that moves more than 4 bytes per lane takes turns: 16 lanes of 8 bytes, or 8 lanes of 16.
void count_banks(const std::vector<Lane> &lanes, Traffic &traffic) {
    const unsigned turn = lanes[0].size <= 4 ? 32 : lanes[0].size == 8 ? 16 : 8;
    for (unsigned first = 0; first < 32; first += turn) {
        std::set<uint64_t> words;
        for (const Lane &lane : lanes)
            if (lane.index >= first && lane.index < first + turn)
                for (uint64_t word = lane.address / 4; 4 * word < lane.address + lane.size; word++)
                    words.insert(word);
        unsigned passes[32] = {};
        for (uint64_t word : words)
            passes[word % 32]++;
        traffic.units += *std::max_element(passes, passes + 32);
        traffic.minimum += (words.size() + 31) / 32;
    }
}

} // namespace

void count_accesses(unsigned warp) {
    if (!settings.count)
        return;
    std::map<std::pair<Place, unsigned>, std::vector<Lane>> together;
    for (unsigned lane = 0; lane < 32 && warp * 32 + lane < block.threads.size(); lane++) {
        Thread &thread = block.threads[warp * 32 + lane];
        std::map<Place, unsigned> times;
        for (const Logged &l : thread.log) {
            const Place place(l.site, l.shared ? Space::shared : Space::global);
            together[{place, times[place]++}].push_back({lane, l.address, l.size});
        }
        thread.log.clear();
    }
    for (const auto &[key, lanes] : together) {
        Traffic &traffic = counted[key.first];
        traffic.site = key.first.first;
        traffic.space = key.first.second;
        traffic.accesses++;
        (traffic.space == Space::shared ? count_banks : count_sectors)(lanes, traffic);
    }
}

void clear_counters() {
    counted.clear();
}

std::vector<Traffic> traffic() {
    std::vector<Traffic> all;
    for (const auto &[place, traffic] : counted)
        all.push_back(traffic);
    return all;
}

Traffic total(Space space) {
    Traffic sum = {space, nullptr};
    for (const auto &[place, t] : counted)
        if (t.space == space) {
            sum.accesses += t.accesses;
            sum.units += t.units;
            sum.minimum += t.minimum;
        }
    return sum;
}

Traffic worst(Space space) {
    Traffic worst = {space, nullptr};
    for (const auto &[place, t] : counted)
        if (t.space == space && t.ratio() >= worst.ratio())
            worst = t;
    return worst;
}

std::string Traffic::text() const {
    char text[200];
    std::snprintf(text, sizeof text, "%s: %zu accesses by warps, %zu %s, %zu at least: %.2fx",
                  site ? place(site).c_str() : "all", (size_t)accesses, (size_t)units,
                  space == Space::shared ? "passes over the banks" : "sectors", (size_t)minimum,
                  ratio());
    return text;
}

} // namespace emu
