// SPDX-License-Identifier: MIT
// The caller's threads. lowbit creates none of its own.
#ifndef LOWBIT_EXECUTOR_H
#define LOWBIT_EXECUTOR_H

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
} lowbit_executor;

#endif
