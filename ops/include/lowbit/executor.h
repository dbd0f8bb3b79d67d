// SPDX-License-Identifier: MIT
// Where operators run: on the caller's threads, of which lowbit creates none of its own, or on a
// GPU.
#ifndef LOWBIT_EXECUTOR_H
#define LOWBIT_EXECUTOR_H

#include <stdbool.h>
#include <stddef.h>

typedef void (*lowbit_task)(void *arg, size_t index);

// parallel_for calls task(arg, i) once for every i in [0, tasks), on any threads, in any order, and
// returns when all of them have. lowbit asks for at most max_tasks (at least 1) tasks at a time and
// never nests calls. Results do not depend on max_tasks. A null executor runs on the calling
// thread.
typedef struct lowbit_executor {
    void (*parallel_for)(void *ctx, size_t tasks, lowbit_task task, void *arg);
    size_t max_tasks;
    void *ctx;
    // With cuda the fields above do not count. All data, and the workspace, lie on the current CUDA
    // device, and what the operator launches is queued on cuda_stream (a cudaStream_t of that
    // device): the call does not wait for it and does not look at any data, so that it can be
    // captured in a CUDA graph. What an operator says of values that it refuses does not hold then:
    // they are not checked.
    bool cuda;
    void *cuda_stream;
} lowbit_executor;

#endif
