// SPDX-License-Identifier: MIT
// Memory that the emulator watches.
#ifndef LOWBIT_TESTS_CUDA_MEMORY_H
#define LOWBIT_TESTS_CUDA_MEMORY_H

#include "machine.h"

namespace emu {

// What is known of each byte of a piece of memory. All zero at first: uninitialised, untouched.
class Watched {
  public:
    enum State : uint8_t { uninitialized, initialized, in_flight, outside };

    Watched(void *data, size_t size, Space space);
    ~Watched();
    Watched(const Watched &) = delete;
    Watched &operator=(const Watched &) = delete;

    // Reports what is wrong with an access of current, which stays within the size, and notes it.
    void access(size_t offset, size_t size, Kind kind, Site site);

    void set_state(size_t offset, size_t size, State state);
    // A copy arrives that current has waited for.
    void land(size_t offset, size_t size);
    // As at first, without any state.
    void forget(size_t size);

    char *data() const { return data_; }
    size_t size() const { return size_; }

  private:
    // The last thread that wrote, and up to two that have read since and are not ordered.
    struct Cell {
        Stamp writer, readers[2];
    };
    // Neighbouring bytes mostly have the same history: what has just been looked up is not again.
    class Before {
      public:
        bool operator()(Stamp stamp) {
            if (stamp != last_) {
                last_ = stamp;
                result_ = happened_before(stamp);
            }
            return result_;
        }

      private:
        Stamp last_ = {}; // nobody's, which is before everything
        bool result_ = true;
    };
    void read(Cell &cell, size_t offset, bool atomic_writer, Before *before, Site site);
    void write(Cell &cell, size_t offset, bool atomic_writer, Kind kind, Before *before, Site site);
    void race(const char *does, size_t offset, Stamp other, const char *did, Site site);

    char *data_;
    size_t size_;
    Space space_;
    Cell *cells_;    // one per byte
    uint8_t *flags_; // one per byte: its state, and whether its last writer was an atomic
};

// Device memory for the functions of the CUDA runtime.
void *allocate(size_t size);
bool release(void *data);
// Writing from the host. Null when [data, data + size) is not in device memory.
Watched *find_global(const void *data, size_t size);

} // namespace emu

#endif
