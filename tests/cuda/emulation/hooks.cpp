// SPDX-License-Identifier: MIT
// The functions that g++ calls from code compiled with -fsanitize=thread, at each load and store,
// and with -fsanitize=bounds,shift,signed-integer-overflow,integer-divide-by-zero, at each mistake;
// without the libraries that have them otherwise.

#include "machine.h"

#include <cstdio>

using emu::Kind;

#define SITE __builtin_return_address(0)

#define HOOK(name, size, kind)                                                                     \
    extern "C" void __tsan_##name(void *address) {                                                 \
        emu::access(address, size, kind, SITE);                                                    \
    }
#define HOOKS(size)                                                                                \
    HOOK(read##size, size, Kind::read)                                                             \
    HOOK(write##size, size, Kind::write)                                                           \
    HOOK(volatile_read##size, size, Kind::read)                                                    \
    HOOK(volatile_write##size, size, Kind::write)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// From memcpy, or of a size that is no power of two: nvcc takes such an access apart where it must.
#define UNALIGNED(name, kind)                                                                      \
    extern "C" void __tsan_##name(void *address, size_t size) {                                    \
        for (size_t i = 0; i < size; i++)                                                          \
            emu::access((char *)address + i, 1, kind, SITE);                                       \
    }
#define UNALIGNED_HOOK(name, size, kind)                                                           \
    extern "C" void __tsan_unaligned_##name##size(void *address) {                                 \
        for (size_t i = 0; i < size; i++)                                                          \
            emu::access((char *)address + i, 1, kind, SITE);                                       \
    }
UNALIGNED(read_range, Kind::read)
UNALIGNED(write_range, Kind::write)
UNALIGNED_HOOK(read, 2, Kind::read)
UNALIGNED_HOOK(read, 4, Kind::read)
UNALIGNED_HOOK(read, 8, Kind::read)
UNALIGNED_HOOK(read, 16, Kind::read)
UNALIGNED_HOOK(write, 2, Kind::write)
UNALIGNED_HOOK(write, 4, Kind::write)
UNALIGNED_HOOK(write, 8, Kind::write)
UNALIGNED_HOOK(write, 16, Kind::write)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}

// The compiler's description of a mistake begins with its place in the source.
struct Place {
    const char *file;
    uint32_t line, column;
};

#define MISTAKE(name, ...)                                                                         \
    extern "C" void __ubsan_handle_##name(const Place *place, ##__VA_ARGS__) {                     \
        emu::report(emu::Bug::undefined_behavior, SITE, "%s at %s:%u", #name, place->file,         \
                    place->line);                                                                  \
    }
MISTAKE(out_of_bounds, void *)
MISTAKE(shift_out_of_bounds, void *, void *)
MISTAKE(add_overflow, void *, void *)
MISTAKE(sub_overflow, void *, void *)
MISTAKE(mul_overflow, void *, void *)
MISTAKE(negate_overflow, void *)
MISTAKE(divrem_overflow, void *, void *)
