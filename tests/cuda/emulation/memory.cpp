// SPDX-License-Identifier: MIT
// Watches every access to shared and global memory.
//
// Order between threads comes from vector clocks, advanced by barriers alone, not from the order in
// which the emulator happens to run them; so a race is found although the threads never really ran
// at once.

#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <unordered_map>

extern "C" const char __ehdr_start, _end; // of the program: its constants, and threadIdx

namespace emu {

// ---- What happened before what ------------------------------------------------------------------

Knowledge merged(const Knowledge &a, const Knowledge &b) {
    if (a == b || !b)
        return a;
    if (!a)
        return b;
    auto both = std::make_shared<Clock>(*a);
    both->epochs.resize(std::max(a->epochs.size(), b->epochs.size()));
    for (size_t i = 0; i < b->epochs.size(); i++)
        both->epochs[i] = std::max(both->epochs[i], b->epochs[i]);
    for (const auto &[number, clock] : b->blocks)
        both->blocks[number] = merged(both->blocks[number], clock);
    return both;
}

bool happened_before(Stamp stamp) {
    if (stamp.block < block.first_number) // an earlier launch, or nobody
        return true;
    const Clock *clock = current->known.get();
    if (stamp.block == block.number && stamp.thread == current->index)
        return true;
    if (clock && stamp.block != block.number) {
        const auto other = clock->blocks.find(stamp.block);
        clock = other == clock->blocks.end() ? nullptr : other->second.get();
    }
    return clock && stamp.thread < clock->epochs.size() &&
           clock->epochs[stamp.thread] >= stamp.epoch;
}

namespace {

// Everything that current knows, and what it did itself so far.
Knowledge knowledge_of_current() {
    auto clock =
        current->known ? std::make_shared<Clock>(*current->known) : std::make_shared<Clock>();
    clock->epochs.resize(block.threads.size());
    clock->epochs[current->index] = current->epoch;
    return clock;
}

// What atomics of this launch have passed on at each address.
struct Passed {
    uint32_t launch;
    Knowledge knowledge; // its `blocks` alone
};
std::unordered_map<const volatile void *, Passed> passed;

void pass_on(const volatile void *address) {
    Passed &here = passed[address];
    if (here.launch != block.first_number)
        here = {block.first_number, nullptr};
    current->observed = merged(current->observed, here.knowledge);
    if (current->fenced) {
        auto clock = std::make_shared<Clock>();
        clock->blocks = current->fenced->blocks;
        clock->blocks[block.number] = current->fenced;
        here.knowledge = merged(here.knowledge, clock);
    }
}

} // namespace

void fence() {
    current->known = merged(current->known, current->observed);
    current->fenced = merged(current->fenced, knowledge_of_current());
    current->epoch++;
}

// ---- Watched memory -----------------------------------------------------------------------------

namespace {

constexpr uint8_t state_bits = 3, atomic_bit = 4;

template <typename T> T *zeros(size_t count) { // costs nothing until it is touched
    void *map = mmap(nullptr, count * sizeof(T) + 1, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        throw std::bad_alloc();
    return static_cast<T *>(map);
}

} // namespace

Watched::Watched(void *data, size_t size, Space space)
    : data_(static_cast<char *>(data)), size_(size), space_(space), cells_(zeros<Cell>(size)),
      flags_(zeros<uint8_t>(size)) {}

Watched::~Watched() {
    munmap(cells_, size_ * sizeof(Cell) + 1);
    munmap(flags_, size_ + 1);
}

void Watched::set_state(size_t offset, size_t size, State state) {
    std::memset(flags_ + offset, state, size);
}

void Watched::land(size_t offset, size_t size) {
    set_state(offset, size, initialized);
    for (size_t i = offset; i < offset + size; i++)
        cells_[i] = Cell{now(), {}};
}

void Watched::forget(size_t size) {
    std::memset(static_cast<void *>(cells_), 0, size * sizeof(Cell));
    std::memset(flags_, outside, size_);
}

void Watched::race(const char *does, size_t offset, Stamp other, const char *did, Site site) {
    report(space_ == Space::shared ? Bug::shared_race : Bug::global_race, site,
           "%s byte %zu of %zu, which thread %u of block %u %s, in no order", does, offset, size_,
           (unsigned)other.thread,
           (unsigned)(other.block == block.number ? block.index : other.block - block.first_number),
           did);
}

void Watched::read(Cell &cell, size_t offset, bool atomic_writer, Before *before, Site site) {
    if (!before[0](cell.writer))
        race("reads", offset, cell.writer, atomic_writer ? "changes by an atomic" : "writes", site);
    for (int i = 0; i < 2; i++)
        if (before[1 + i](cell.readers[i])) {
            cell.readers[i] = now();
            break;
        }
}

void Watched::write(Cell &cell, size_t offset, bool atomic_writer, Kind kind, Before *before,
                    Site site) {
    const char *does = kind == Kind::atomic ? "changes by an atomic" : "writes";
    if (!before[0](cell.writer) && !(kind == Kind::atomic && atomic_writer))
        race(does, offset, cell.writer, atomic_writer ? "changes by an atomic" : "writes", site);
    for (int i = 0; i < 2; i++)
        if (!before[1 + i](cell.readers[i]))
            race(does, offset, cell.readers[i], "reads", site);
    cell = Cell{now(), {}};
}

void Watched::access(size_t offset, size_t size, Kind kind, Site site) {
    const bool shared = space_ == Space::shared;
    Before before[3]; // of the writer and of both readers
    for (size_t i = offset; i < offset + size; i++) {
        const uint8_t state = flags_[i] & state_bits;
        if (state == outside) {
            report(Bug::shared_out_of_bounds, site, "byte %zu belongs to no shared variable", i);
            return;
        }
        if (state == in_flight)
            report(Bug::copy_in_flight, site, "byte %zu is still being copied", i);
        if (state == uninitialized && kind != Kind::write)
            report(shared ? Bug::uninitialized_shared : Bug::uninitialized_global, site,
                   "reads byte %zu of %zu, which nobody has written", i, size_);
        const bool atomic_writer = flags_[i] & atomic_bit;
        if (kind == Kind::read) {
            read(cells_[i], i, atomic_writer, before, site);
        } else {
            write(cells_[i], i, atomic_writer, kind, before, site);
            flags_[i] = initialized | (kind == Kind::atomic ? atomic_bit : 0);
        }
    }
}

// ---- Shared memory ------------------------------------------------------------------------------

namespace {

constexpr size_t shared_size = 227 << 10, static_limit = 48 << 10, gap = 64;

Watched &shared_memory() {
    static Watched memory(zeros<char>(shared_size), shared_size, Space::shared);
    return memory;
}

struct {
    size_t end; // of what is taken
    size_t static_size;
    std::map<const void *, size_t> variables; // offsets
} arena;

size_t take_shared(size_t size) {
    const size_t offset = (arena.end + gap + 127) / 128 * 128;
    if (offset + size > shared_size) {
        report(Bug::shared_out_of_bounds, nullptr, "a block takes more than %zu bytes",
               shared_size);
        stop_launch(cudaErrorInvalidValue);
    }
    std::memset(shared_memory().data() + offset, 0xa5, size);
    shared_memory().set_state(offset, size, Watched::uninitialized);
    arena.end = offset + size;
    return offset;
}

} // namespace

// The dynamic part stands first, as nobody knows yet how much the variables will take.
void reset_shared_memory(size_t dynamic) {
    shared_memory().forget(arena.end);
    arena = {dynamic, 0, {}};
    std::memset(shared_memory().data(), 0xa5, dynamic);
    shared_memory().set_state(0, dynamic, Watched::uninitialized);
}

void *dynamic_shared() {
    return shared_memory().data();
}

void *shared_variable(const void *key, size_t size) {
    const auto known = arena.variables.find(key);
    if (known != arena.variables.end())
        return shared_memory().data() + known->second;
    arena.static_size += size;
    if (arena.static_size > static_limit) {
        report(Bug::shared_out_of_bounds, nullptr, "variables of %zu bytes, more than %zu",
               arena.static_size, static_limit);
        stop_launch(cudaErrorInvalidValue);
    }
    const size_t offset = take_shared(size);
    arena.variables[key] = offset;
    return shared_memory().data() + offset;
}

// ---- Global memory ------------------------------------------------------------------------------

namespace {

constexpr size_t guard = 64 << 10;
std::map<uint64_t, std::unique_ptr<Watched>> buffers; // by address

} // namespace

void *allocate(size_t size) {
    const size_t mapped = (size + 4095) / 4096 * 4096 + 2 * guard;
    char *map = zeros<char>(mapped);
    mprotect(map, guard, PROT_NONE);
    mprotect(map + mapped - guard, guard, PROT_NONE);
    char *data = map + guard;
    if (size < (64u << 20)) // NaN in every float type; larger memory stays zero, and cheap
        std::memset(data, 0xff, size);
    buffers[(uint64_t)data] = std::make_unique<Watched>(data, size, Space::global);
    return data;
}

bool release(void *data) {
    const auto found = buffers.find((uint64_t)data);
    if (found == buffers.end())
        return false;
    munmap(static_cast<char *>(data) - guard,
           (found->second->size() + 4095) / 4096 * 4096 + 2 * guard);
    buffers.erase(found);
    return true;
}

// The buffer that holds this address, or ends up to `past` bytes before it.
static Watched *find_buffer(uint64_t address, size_t past) {
    const auto after = buffers.upper_bound(address);
    if (after == buffers.begin())
        return nullptr;
    Watched *buffer = std::prev(after)->second.get();
    return address - (uint64_t)buffer->data() < buffer->size() + past ? buffer : nullptr;
}

Watched *find_global(const void *data, size_t size) {
    Watched *buffer = find_buffer((uint64_t)data, 0);
    return buffer && (uint64_t)data + size <= (uint64_t)buffer->data() + buffer->size() ? buffer
                                                                                        : nullptr;
}

// ---- Accesses -----------------------------------------------------------------------------------

namespace {

const char *verb(Kind kind) {
    return kind == Kind::read ? "reads" : kind == Kind::write ? "writes" : "changes";
}

void check_alignment(uint64_t address, size_t size, Kind kind, Site site) {
    if (size <= 16 && (size & (size - 1)) == 0 && address % size)
        report(Bug::misaligned, site, "%s %zu bytes at an address that is %u past a multiple of 16",
               verb(kind), size, (unsigned)(address % 16));
}

void log(uint64_t address, size_t size, bool shared, Site site) {
    if (settings.count)
        current->log.push_back({site, address, (uint32_t)size, shared});
}

void access_global(uint64_t address, size_t size, Kind kind, Site site) {
    Watched *buffer = find_buffer(address, guard);
    if (!buffer && kind == Kind::read && address >= (uint64_t)&__ehdr_start &&
        address < (uint64_t)&_end)
        return;
    if (!buffer && on_other_stack(address)) {
        report(Bug::foreign_local, site, "%s a local variable of another thread", verb(kind));
        return;
    }
    const size_t offset = buffer ? address - (uint64_t)buffer->data() : 0;
    if (!buffer || offset + size > buffer->size()) {
        if (buffer)
            report(Bug::global_out_of_bounds, site, "%s %zu bytes at byte %zu of %zu", verb(kind),
                   size, offset, buffer->size());
        else
            report(Bug::global_out_of_bounds, site,
                   "%s %zu bytes at %#zx, which is no device memory", verb(kind), size,
                   (size_t)address);
        stop_launch(cudaErrorIllegalAddress);
    }
    log(address, size, false, site);
    buffer->access(offset, size, kind, site);
}

} // namespace

void access(const volatile void *pointer, size_t size, Kind kind, Site site) {
    site = site ? site : __builtin_return_address(0);
    const auto address = (uint64_t)pointer;
    if (!current || address - (uint64_t)current->stack < stack_size)
        return;
    const size_t offset = address - (uint64_t)shared_memory().data();
    if (offset < shared_size) {
        check_alignment(address, size, kind, site);
        log(address, size, true, site);
        shared_memory().access(offset, std::min(size, shared_size - offset), kind, site);
    } else {
        access_global(address, size, kind, site);
        check_alignment(address, size, kind, site);
    }
    if (kind == Kind::atomic)
        pass_on(pointer);
}

// ---- cp.async -----------------------------------------------------------------------------------

// The bytes come only when the thread has waited for them. Until then the destination holds
// garbage.
void cp_async(void *to, const void *from, unsigned bytes) {
    const Site site = __builtin_return_address(0);
    if (bytes > 16)
        report(Bug::undefined_behavior, site, "cp.async of %u bytes out of 16", bytes);
    if ((uint64_t)from % 16)
        report(Bug::misaligned, site, "cp.async from an address that is no multiple of 16");
    const size_t offset = static_cast<char *>(to) - shared_memory().data();
    if (offset + 16 > shared_size) {
        report(Bug::shared_out_of_bounds, site, "cp.async to %p, which is not shared memory", to);
        stop_launch(cudaErrorIllegalAddress);
    }
    if (bytes)
        access_global((uint64_t)from, bytes, Kind::read, site);
    access(to, 16, Kind::write, site);
    shared_memory().set_state(offset, 16, Watched::in_flight);
    std::memset(to, 0xcd, 16);
    current->open.push_back({to, from, bytes});
}

void cp_async_commit() {
    current->groups.push_back(std::move(current->open));
    current->open.clear();
}

void cp_async_wait(unsigned groups) {
    for (; current->groups.size() > groups; current->groups.pop_front())
        for (const Copy &copy : current->groups.front()) {
            std::memset(copy.to, 0, 16);
            std::memcpy(copy.to, copy.from, copy.bytes);
            shared_memory().land(static_cast<char *>(copy.to) - shared_memory().data(), 16);
        }
}

} // namespace emu
