// SPDX-License-Identifier: MIT
// Memory between two pages that must not be touched, so that reading or writing one byte past the
// end (or, at_start, before the beginning) stops the test.
#ifndef LOWBIT_TESTS_GUARDED_BUFFER_H
#define LOWBIT_TESTS_GUARDED_BUFFER_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

class GuardedBuffer {
  public:
    enum Side { at_end, at_start };

    GuardedBuffer() = default;

    // size bytes that end (or begin) at a page boundary: as aligned as size (or as a page) is.
    explicit GuardedBuffer(size_t size, Side side = at_end) : size_(size) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        const size_t inner = (size + page - 1) / page * page;
        mapped_ = inner + 2 * page;
        void *map = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED)
            throw std::bad_alloc();
        map_ = static_cast<char *>(map);
        if (inner && mprotect(map_ + page, inner, PROT_READ | PROT_WRITE) != 0)
            throw std::bad_alloc();
        data_ = map_ + page + (side == at_end ? inner - size : 0);
    }

    ~GuardedBuffer() {
        if (map_)
            munmap(map_, mapped_);
    }

    GuardedBuffer(GuardedBuffer &&other) noexcept { *this = std::move(other); }

    GuardedBuffer &operator=(GuardedBuffer &&other) noexcept {
        std::swap(map_, other.map_);
        std::swap(mapped_, other.mapped_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }

    // From here on a write stops the test too.
    void make_read_only() {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        if (mapped_ > 2 * page && mprotect(map_ + page, mapped_ - 2 * page, PROT_READ) != 0)
            throw std::bad_alloc();
    }

    void *data() const { return data_; }
    size_t size() const { return size_; }

    template <typename T> T *as() const { return reinterpret_cast<T *>(data_); }

  private:
    char *map_ = nullptr;
    size_t mapped_ = 0;
    char *data_ = nullptr;
    size_t size_ = 0;
};

#endif
