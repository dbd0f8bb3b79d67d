// SPDX-License-Identifier: MIT
// Runs the blocks of a grid, one after the other, and the threads of a block as fibers.

#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <set>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Saves the registers that a function must keep on the running stack, whose pointer goes to *from,
// and restores those on the stack at `to`.
extern "C" void emu_switch(void **from, void *to);
asm(R"(
    .text
    .globl emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, . - emu_switch
)");

namespace emu {

Settings settings;
Block block;
Thread *current;
cudaError_t last_error;

namespace {

constexpr unsigned warp_size = 32;
constexpr unsigned most_threads = 1024;

// A warp operation that some lanes have come to.
struct Meeting {
    const Operation *operation;
    uint32_t mask, arrived;
    int line;
    Site site;
    void *lanes[warp_size];
};

struct Warp {
    uint32_t alive; // lanes that have not returned
    std::vector<Meeting> meetings;
};

// The __syncthreads that some threads have come to.
struct Barrier {
    unsigned arrived, votes;
    unsigned result; // the votes of the last one
    int line;
};

std::vector<Warp> warps;
Barrier barrier;
unsigned returned;
std::deque<Thread *> ready; // to run next
void *scheduler_stack_pointer;
bool stopped;
void (*thread_body)(void *);
void *thread_argument;
uint64_t random_state;

void switch_to_scheduler() {
    emu_switch(&current->stack_pointer, scheduler_stack_pointer);
}

void thread_main() {
    thread_body(thread_argument);
    current->state = Thread::returned;
    switch_to_scheduler();
    std::abort(); // nobody resumes it
}

char *stacks() {
    static char *const all = [] {
        void *map = mmap(nullptr, most_threads * stack_size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED)
            throw std::bad_alloc();
        return static_cast<char *>(map);
    }();
    return all;
}

void wake(Thread &thread) {
    thread.state = Thread::ready;
    ready.push_back(&thread);
}

// Wakes these, given in ascending order, in the order of the settings; current runs on.
void wake(std::vector<Thread *> &threads) {
    if (settings.order == Order::reverse)
        std::reverse(threads.begin(), threads.end());
    for (Thread *thread : threads)
        if (thread != current)
            wake(*thread);
}

void wait(const char *operation, Site site) {
    current->state = Thread::waiting;
    current->waits_in = operation;
    current->site = site;
    switch_to_scheduler();
}

Thread &take_ready() {
    const size_t i = settings.order == Order::shuffled ? random_below(ready.size()) : 0;
    Thread &thread = *ready[i];
    ready.erase(ready.begin() + (ptrdiff_t)i);
    return thread;
}

// What each of these threads did so far happens before what any of them does next.
void synchronize(const std::vector<Thread *> &threads) {
    Knowledge known, fenced, observed;
    for (const Thread *t : threads) {
        known = merged(known, t->known);
        fenced = merged(fenced, t->fenced);
        observed = merged(observed, t->observed);
    }
    auto all = known ? std::make_shared<Clock>(*known) : std::make_shared<Clock>();
    all->epochs.resize(block.threads.size());
    for (const Thread *t : threads)
        all->epochs[t->index] = t->epoch;
    for (Thread *t : threads) {
        t->epoch++;
        t->known = all;
        t->fenced = fenced;
        t->observed = observed;
    }
}

void release_barrier() {
    std::vector<Thread *> threads;
    for (Thread &t : block.threads)
        if (t.state == Thread::waiting || &t == current)
            threads.push_back(&t);
    synchronize(threads);
    for (unsigned w = 0; w < warps.size(); w++)
        count_accesses(w);
    barrier.result = barrier.votes;
    barrier.arrived = 0;
    wake(threads);
}

void return_from_kernel(Thread &thread) {
    const unsigned w = thread.index / warp_size, lane = thread.index % warp_size;
    Warp &warp = warps[w];
    warp.alive &= ~(1u << lane);
    returned++;
    for (const Meeting &m : warp.meetings)
        if (m.mask >> lane & 1) {
            report(Bug::warp_mask, m.site, "lane %u returns, and lanes %08x wait for it in %s",
                   lane, m.arrived, m.operation->name);
            last_error = cudaErrorLaunchFailure;
            stopped = true;
        }
    if (barrier.arrived && barrier.arrived + returned == block.threads.size()) {
        report(Bug::barrier_divergence, nullptr,
               "%u threads have returned, others wait in the __syncthreads at line %d", returned,
               barrier.line);
        current = nullptr;
        release_barrier();
    }
}

void report_deadlock() {
    std::string who;
    std::set<std::pair<const char *, Site>> seen;
    for (const Thread &t : block.threads)
        if (t.state == Thread::waiting && seen.insert({t.waits_in, t.site}).second)
            who += (who.empty() ? "thread " : "; thread ") + std::to_string(t.index) +
                   " waits in " + t.waits_in + " at " + place(t.site);
    current = nullptr;
    report(Bug::deadlock, nullptr, "%s", who.c_str());
    last_error = cudaErrorLaunchTimeout;
    stopped = true;
}

void begin_block(unsigned threads) {
    block.threads.resize(threads);
    warps.assign((threads + warp_size - 1) / warp_size, Warp());
    barrier = Barrier();
    returned = 0;
    ready.clear();
    for (unsigned i = 0; i < threads; i++) {
        Thread &t = block.threads[i];
        t = Thread();
        t.index = i;
        t.epoch = 1;
        t.stack = stacks() + i * stack_size;
        // As emu_switch leaves a stack: six registers, then where to return to; aligned as for a
        // call.
        void **top = reinterpret_cast<void **>(t.stack + stack_size) - 2;
        *top = reinterpret_cast<void *>(thread_main);
        t.stack_pointer = top - 6;
        warps[i / warp_size].alive |= 1u << i % warp_size;
        settings.order == Order::reverse ? ready.push_front(&t) : ready.push_back(&t);
    }
}

void run_block() {
    while (returned < block.threads.size() && !stopped) {
        if (ready.empty())
            return report_deadlock();
        Thread &thread = take_ready();
        current = &thread;
        threadIdx.x = thread.index % blockDim.x;
        threadIdx.y = thread.index / blockDim.x % blockDim.y;
        threadIdx.z = thread.index / blockDim.x / blockDim.y;
        emu_switch(&scheduler_stack_pointer, thread.stack_pointer);
        if (!stopped && thread.state == Thread::returned)
            return_from_kernel(thread);
    }
    for (unsigned w = 0; w < warps.size(); w++)
        count_accesses(w);
}

bool valid(dim3 grid, dim3 threads) {
    const uint64_t count = (uint64_t)threads.x * threads.y * threads.z;
    return count >= 1 && count <= most_threads && threads.z <= 64 && grid.x >= 1 && grid.y >= 1 &&
           grid.z >= 1 && grid.x <= INT32_MAX && grid.y <= UINT16_MAX && grid.z <= UINT16_MAX;
}

std::vector<uint64_t> blocks_to_run(uint64_t count) {
    std::vector<uint64_t> blocks;
    for (uint64_t i = settings.first_block; i < count && i <= settings.last_block; i++)
        blocks.push_back(i);
    if (settings.order == Order::reverse)
        std::reverse(blocks.begin(), blocks.end());
    for (size_t i = blocks.size(); settings.order == Order::shuffled && i > 1; i--)
        std::swap(blocks[i - 1], blocks[random_below(i)]);
    return blocks;
}

} // namespace

uint64_t random_below(uint64_t n) { // SplitMix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % n;
}

bool on_other_stack(uint64_t address) {
    return address - (uint64_t)stacks() < block.threads.size() * stack_size;
}

void stop_launch(cudaError_t error) {
    last_error = error;
    stopped = true;
    switch_to_scheduler();
    std::abort(); // nobody resumes it
}

cudaError_t launch(dim3 grid, dim3 threads, size_t shared, void (*body)(void *), void *argument) {
    static uint32_t launched_blocks;
    if (!valid(grid, threads))
        return last_error = cudaErrorInvalidConfiguration;
    if (shared > 227 << 10)
        return last_error = cudaErrorInvalidValue;
    gridDim = grid;
    blockDim = threads;
    thread_body = body;
    thread_argument = argument;
    random_state = settings.seed;
    stopped = false;
    block.first_number = launched_blocks + 1;
    for (uint64_t index : blocks_to_run((uint64_t)grid.x * grid.y * grid.z)) {
        block.number = ++launched_blocks;
        block.index = index;
        blockIdx.x = (unsigned)(index % grid.x);
        blockIdx.y = (unsigned)(index / grid.x % grid.y);
        blockIdx.z = (unsigned)(index / grid.x / grid.y);
        reset_shared_memory(shared);
        begin_block(threads.x * threads.y * threads.z);
        run_block();
        current = nullptr;
        if (stopped)
            return last_error;
    }
    return cudaSuccess;
}

unsigned block_barrier(bool vote, int line) {
    const Site site = __builtin_return_address(0);
    if (!barrier.arrived) {
        barrier.line = line;
        barrier.votes = 0;
    }
    if (line != barrier.line)
        report(Bug::barrier_divergence, site,
               "comes to the __syncthreads at line %d while others wait in that at line %d", line,
               barrier.line);
    if (returned)
        report(Bug::barrier_divergence, site,
               "comes to __syncthreads, and %u threads have returned", returned);
    barrier.votes += vote;
    if (++barrier.arrived + returned == block.threads.size())
        release_barrier();
    else
        wait("__syncthreads", site);
    return barrier.result;
}

void collective(const Operation &operation, uint32_t mask, void *argument, int line, Site site) {
    site = site ? site : __builtin_return_address(0);
    const unsigned lane = current->index % warp_size, first = current->index - lane;
    Warp &warp = warps[current->index / warp_size];
    if (!(mask >> lane & 1)) {
        report(Bug::warp_mask, site, "lane %u is not in its own mask %08x of %s", lane, mask,
               operation.name);
        stop_launch(cudaErrorLaunchFailure);
    }
    if (mask & ~warp.alive) {
        report(Bug::warp_mask, site, "the mask %08x of %s names lanes that do not run; %08x do",
               mask, operation.name, warp.alive);
        mask &= warp.alive;
    }
    auto &meetings = warp.meetings;
    auto m = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting &meeting) {
        return meeting.operation == &operation && meeting.mask == mask;
    });
    if (m == meetings.end())
        m = meetings.insert(m, Meeting{&operation, mask, 0, line, site, {}});
    if (line != m->line)
        report(Bug::warp_divergence, site, "lane %u comes to %s at line %d, others at line %d",
               lane, operation.name, line, m->line);
    m->lanes[lane] = argument;
    m->arrived |= 1u << lane;
    if (m->arrived != mask)
        return wait(operation.name, site);

    const Meeting complete = *m;
    meetings.erase(m);
    operation.execute(complete.lanes, mask);
    std::vector<Thread *> threads;
    for (unsigned i = 0; i < warp_size; i++)
        if (mask >> i & 1)
            threads.push_back(&block.threads[first + i]);
    if (operation.orders_memory)
        synchronize(threads);
    if (mask == warp.alive)
        count_accesses(current->index / warp_size);
    wake(threads);
}

} // namespace emu
