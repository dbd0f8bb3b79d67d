// SPDX-License-Identifier: MIT
// What the operator tests share: guarded tensors and workspaces, executors, and a walk over every
// instruction set and executor.
#ifndef LOWBIT_TESTS_TESTING_H
#define LOWBIT_TESTS_TESTING_H

#include "guarded_buffer.h"
#include "reference.h"

#include "lowbit/lowbit.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

inline size_t dtype_size(lowbit_dtype dtype) {
    static const size_t sizes[] = {4, 2, 2, 1, 4, 1};
    return sizes[dtype];
}

inline const char *dtype_name(lowbit_dtype dtype) {
    static const char *const names[] = {"float32", "float16", "bfloat16", "int8", "int32", "uint8"};
    return names[dtype];
}

// A matrix whose last element stands before a guard page. Everything, also the gaps between rows,
// is filled with 0xa5 at first, so that comparing two whole buffers also finds stray writes.
class Tensor {
  public:
    Tensor(lowbit_dtype dtype, size_t rows, size_t cols, size_t gap = 0)
        : view_{nullptr, dtype, rows, cols, cols + gap},
          buffer_((rows ? (rows - 1) * (cols + gap) + cols : 0) * dtype_size(dtype)) {
        view_.data = buffer_.data();
        clear();
    }

    static Tensor vector(lowbit_dtype dtype, size_t size) { return Tensor(dtype, size, 1); }

    void clear() { std::memset(buffer_.data(), 0xa5, buffer_.size()); }

    operator const lowbit_tensor *() const { return &view_; }
    const lowbit_tensor *operator->() const { return &view_; }

    float get(size_t row, size_t col) const { return reference_get(&view_, row, col); }
    void set(size_t row, size_t col, float value) { reference_set(&view_, row, col, value); }

    // The element's place, for integer tensors and for bit patterns.
    template <typename T> T &at(size_t row, size_t col) const {
        return buffer_.as<T>()[row * view_.stride + col];
    }

    // Rows [first, first + rows), in the same memory.
    lowbit_tensor slice(size_t first, size_t rows) const {
        lowbit_tensor part = view_;
        part.data = (char *)view_.data + first * view_.stride * dtype_size(view_.dtype);
        part.rows = rows;
        return part;
    }

    const GuardedBuffer &buffer() const { return buffer_; }
    void copy(const Tensor &other) { // of the same layout
        std::memcpy(buffer_.data(), other.buffer_.data(), buffer_.size());
    }
    void make_read_only() { buffer_.make_read_only(); }

  private:
    lowbit_tensor view_;
    GuardedBuffer buffer_;
};

// Both buffers hold the same bytes, gaps included.
inline testing::AssertionResult same_bits(const Tensor &expected, const Tensor &actual) {
    const auto *want = expected.buffer().as<unsigned char>();
    const auto *have = actual.buffer().as<unsigned char>();
    if (std::memcmp(want, have, expected.buffer().size()) == 0)
        return testing::AssertionSuccess();
    size_t i = 0;
    while (want[i] == have[i])
        i++;
    const size_t size = dtype_size(expected->dtype), element = i / size;
    uint32_t want_bits = 0, have_bits = 0;
    std::memcpy(&want_bits, want + element * size, size);
    std::memcpy(&have_bits, have + element * size, size);
    char bits[64];
    std::snprintf(bits, sizeof bits, "expected bits %0*x, got %0*x", (int)size * 2, want_bits,
                  (int)size * 2, have_bits);
    return testing::AssertionFailure()
           << "first difference in row " << element / expected->stride << ", column "
           << element % expected->stride << " of " << expected->rows << " x " << expected->cols
           << " (stride " << expected->stride << "): " << bits;
}

// Scratch of exactly this size, full of NaN and -1, before a guard page.
class Workspace {
  public:
    explicit Workspace(size_t size) : size_(size), buffer_((size + 63) / 64 * 64) {
        std::memset(buffer_.data(), 0xff, buffer_.size());
    }
    ~Workspace() {
        for (size_t i = size_; i < buffer_.size(); i++)
            EXPECT_EQ(buffer_.as<unsigned char>()[i], 0xff) << "written past the workspace";
    }
    void *data() const { return buffer_.data(); }
    size_t size() const { return size_; }

  private:
    size_t size_;
    GuardedBuffer buffer_;
};

// The calling thread's floating-point environment for as long as this lives: rounding up and, where
// the processor can, subnormals flushed to zero, as torch.set_flush_denormal would.
class HostileEnvironment {
  public:
    explicit HostileEnvironment(bool on) {
        std::fegetenv(&saved_);
        if (!on)
            return;
        std::fesetround(FE_UPWARD);
#if defined(__x86_64__)
        _mm_setcsr(_mm_getcsr() | 0x8040); // flush to zero, denormals are zero
#endif
    }
    ~HostileEnvironment() { std::fesetenv(&saved_); }

  private:
    std::fenv_t saved_;
};

inline unsigned environment_word() {
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3fu; // without the sticky exception flags
#else
    return (unsigned)std::fegetround();
#endif
}

// One way of calling an operator.
struct Way {
    const char *name;
    size_t max_tasks; // 0: no executor
    bool threads;     // a thread for each task, or all on the calling thread, last first
    bool hostile;     // the environment of the calling thread and of every other thread
};

const Way ways[] = {
    {"no executor", 0, false, false},
    {"no executor, hostile", 0, false, true},
    {"one task", 1, true, false},
    {"two tasks in reverse", 2, false, true},
    {"three threads, hostile", 3, true, true},
    {"seven threads", 7, true, false},
};
const std::span<const Way> serially(ways, 1);

// The executor of a way. Expects each call to stay within max_tasks, and each task to leave its
// thread's floating-point environment as it found it.
class Executor {
  public:
    explicit Executor(const Way &way)
        : way_(way), executor_{run, way.max_tasks, this, false, nullptr} {}
    operator const lowbit_executor *() const { return way_.max_tasks ? &executor_ : nullptr; }
    size_t max_tasks() const { return way_.max_tasks ? way_.max_tasks : 1; }

    size_t most_tasks = 0; // of any call so far

  private:
    static void run(void *ctx, size_t tasks, lowbit_task task, void *arg) {
        auto *self = static_cast<Executor *>(ctx);
        EXPECT_GE(tasks, 1u);
        EXPECT_LE(tasks, self->way_.max_tasks);
        EXPECT_FALSE(self->busy_) << "nested parallel_for";
        self->busy_ = true;
        self->most_tasks = tasks > self->most_tasks ? tasks : self->most_tasks;
        const auto call = [=](size_t i) {
            HostileEnvironment environment(self->way_.hostile && i % 2 == 0);
            const unsigned word = environment_word();
            task(arg, i);
            EXPECT_EQ(environment_word(), word) << "a task changed its thread's environment";
        };
        if (self->way_.threads) {
            std::vector<std::thread> threads;
            for (size_t i = 0; i < tasks; i++)
                threads.emplace_back(call, i);
            for (auto &thread : threads)
                thread.join();
        } else {
            for (size_t i = tasks; i-- > 0;)
                call(i);
        }
        self->busy_ = false;
    }

    Way way_;
    lowbit_executor executor_;
    bool busy_ = false;
};

// The levels of lowbit_cpu_isa that this machine has, lowest first.
inline std::vector<const char *> isa_levels() {
    EXPECT_EQ(lowbit_cpu_isa_cap(nullptr), LOWBIT_OK);
    const uint32_t isa = lowbit_cpu_isa();
    std::vector<const char *> levels;
    for (uint32_t bit = 1; bit; bit <<= 1)
        if (isa & bit)
            levels.push_back(lowbit_cpu_isa_name(bit));
    return levels;
}

// Calls run(executor) at every level in each of these ways, the calling thread's environment set, and
// stops at the first failure. run returns the status; compare, called next, looks at the results.
template <typename Run, typename Compare>
void expect_everywhere(Run run, Compare compare, std::span<const Way> ways = ::ways) {
    for (const char *level : isa_levels()) {
        ASSERT_EQ(lowbit_cpu_isa_cap(level), LOWBIT_OK);
        for (const Way &way : ways) {
            SCOPED_TRACE(std::string(level) + ", " + way.name);
            Executor executor(way);
            lowbit_status status;
            {
                HostileEnvironment environment(way.hostile);
                status = run(executor);
            }
            EXPECT_EQ(status, LOWBIT_OK) << lowbit_last_error();
            compare();
            if (testing::Test::HasFailure())
                return;
        }
    }
    lowbit_cpu_isa_cap(nullptr);
}

#endif
