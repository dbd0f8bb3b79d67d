// SPDX-License-Identifier: MIT
// Running tasks on the caller's executor.
#ifndef LOWBIT_OPS_PARALLEL_H
#define LOWBIT_OPS_PARALLEL_H

#include "lowbit/executor.h"

#include <stdbool.h>

// How many tasks to use for this many pieces of work of so many nanoseconds in all: no more than
// the executor takes, than there are pieces, and than leave each about 20 us.
size_t lowbit_task_count(const lowbit_executor *executor, size_t pieces, double nanoseconds);

// task(arg, i) for every i in [0, tasks), each in the default floating-point environment, whatever
// the thread's own is: torch.set_flush_denormal changes the calling thread alone, and the result
// would depend on which thread computes what.
void lowbit_parallel(const lowbit_executor *executor, size_t tasks, lowbit_task task, void *arg);

// Returns what call says, where the executor is a GPU. A build without CUDA refuses such an
// executor before.
#if LOWBIT_CUDA
#define LOWBIT_ON_CUDA(executor, call)                                                             \
    do {                                                                                           \
        if ((executor) && (executor)->cuda)                                                        \
            return (call);                                                                         \
    } while (0)
#else
#define LOWBIT_ON_CUDA(executor, call) ((void)0)
#endif

static inline bool lowbit_reads_data(const lowbit_executor *executor) {
    return !executor || !executor->cuda;
}

static inline size_t lowbit_max_tasks(const lowbit_executor *executor) {
    return executor ? executor->max_tasks : 1;
}

#endif
