// SPDX-License-Identifier: MIT
// What the operations of a warp compute, from the arguments of its lanes. In the layouts of the PTX
// manual, lane = 4 * g + t.

#include "machine.h"

#include "../../../kernels/cpu/common/floats.h"

namespace emu {

namespace {

void no_result(void *const *, uint32_t) {}

int source_lane(const Shuffle &s, int lane) {
    const int first = lane & ~(s.width - 1), last = first + s.width - 1;
    switch (s.mode) {
    case Shuffle::index: return first | (s.lane & (s.width - 1));
    case Shuffle::up: return lane - s.lane >= first ? lane - s.lane : lane;
    case Shuffle::down: return lane + s.lane <= last ? lane + s.lane : lane;
    default: return (lane ^ s.lane) <= last ? lane ^ s.lane : lane;
    }
}

void execute_shuffle(void *const *lanes, uint32_t mask) {
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        Shuffle &s = *static_cast<Shuffle *>(lanes[lane]);
        const int source = source_lane(s, lane);
        if (mask >> source & 1) {
            s.result = static_cast<const Shuffle *>(lanes[source])->value;
        } else {
            report(Bug::warp_mask, current->site,
                   "lane %d reads from lane %d, which the mask %08x leaves out", lane, source,
                   mask);
            s.result = 0xbadbadbadbadbad;
        }
    }
}

void execute_ballot(void *const *lanes, uint32_t mask) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            votes |= (uint32_t)static_cast<Ballot *>(lanes[lane])->vote << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            static_cast<Ballot *>(lanes[lane])->result = votes;
}

template <bool transposed> void execute_ldmatrix(void *const *lanes, uint32_t) {
    const auto element = [&](int matrix, int row, int col) -> uint32_t {
        return static_cast<const Ldmatrix *>(lanes[8 * matrix + row])->row[col];
    };
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            const int g = lane / 4, t = lane % 4;
            const uint32_t low = transposed ? element(i, 2 * t, g) : element(i, g, 2 * t);
            const uint32_t high = transposed ? element(i, 2 * t + 1, g) : element(i, g, 2 * t + 1);
            static_cast<Ldmatrix *>(lanes[lane])->result[i] = high << 16 | low;
        }
}

// The elements of a register, the first in its lowest bits.
struct S8 {
    using Sum = int64_t;
    using Result = int32_t;
    static constexpr int count = 4;
    static Sum get(uint32_t r, int i) { return (int8_t)(r >> 8 * i); }
    static Result round(Sum sum) { return (int32_t)(uint64_t)sum; }
};
template <float to_float(uint16_t)> struct Half {
    using Sum = double;
    using Result = float;
    static constexpr int count = 2;
    static Sum get(uint32_t r, int i) { return to_float((uint16_t)(r >> 16 * i)); }
    static Result round(Sum sum) { return (float)sum; }
};

template <typename Type> void execute_mma(void *const *lanes, uint32_t) {
    constexpr int n = Type::count, half = 4 * n; // half of k
    typename Type::Sum a[16][2 * half], b[8][2 * half];
    for (int lane = 0; lane < 32; lane++) {
        const Mma &m = *static_cast<const Mma *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < n; i++)
            for (int r = 0; r < 4; r++)
                a[g + 8 * (r % 2)][half * (r / 2) + n * t + i] = Type::get(m.a[r], i);
        for (int i = 0; i < n; i++)
            for (int r = 0; r < 2; r++)
                b[g][half * r + n * t + i] = Type::get(m.b[r], i);
    }
    for (int lane = 0; lane < 32; lane++) {
        auto *d = static_cast<typename Type::Result *>(static_cast<const Mma *>(lanes[lane])->d);
        for (int r = 0; r < 4; r++) {
            const int row = lane / 4 + 8 * (r / 2), col = lane % 4 * 2 + r % 2;
            typename Type::Sum sum = d[r];
            for (int k = 0; k < 2 * half; k++)
                sum += a[row][k] * b[col][k];
            d[r] = Type::round(sum);
        }
    }
}

} // namespace

const Operation syncwarp = {"__syncwarp", no_result, true};
const Operation shuffle = {"a shuffle", execute_shuffle, false};
const Operation ballot = {"a vote", execute_ballot, false};
const Operation ldmatrix = {"ldmatrix", execute_ldmatrix<false>, false};
const Operation ldmatrix_trans = {"ldmatrix.trans", execute_ldmatrix<true>, false};
const Operation mma_s8 = {"mma.s8", execute_mma<S8>, false};
const Operation mma_f16 = {"mma.f16", execute_mma<Half<lowbit_f16_to_f32>>, false};
const Operation mma_bf16 = {"mma.bf16", execute_mma<Half<lowbit_bf16_to_f32>>, false};

} // namespace emu
