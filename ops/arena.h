// SPDX-License-Identifier: MIT
// Cutting a workspace into pieces, or, with a null base, finding out how large it has to be.
#ifndef LOWBIT_OPS_ARENA_H
#define LOWBIT_OPS_ARENA_H

#include <stddef.h>

typedef struct lowbit_arena {
    char *base;
    size_t used;
} lowbit_arena;

static inline size_t lowbit_round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// The next piece, aligned to 64 bytes; null while measuring.
static inline void *lowbit_take(lowbit_arena *arena, size_t bytes) {
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += lowbit_round_up(bytes, 64);
    return piece;
}

#endif
