// SPDX-License-Identifier: MIT
// Running tasks on the caller's executor.
#ifndef LOWBIT_OPS_PARALLEL_H
#define LOWBIT_OPS_PARALLEL_H

#include "lowbit/executor.h"

// How many tasks to use for this many pieces of work of so many nanoseconds in all: no more than
// the executor takes, than there are pieces, and than leave each about 20 us.
size_t lowbit_task_count(const lowbit_executor *executor, size_t pieces, double nanoseconds);

// task(arg, i) for every i in [0, tasks), each in the default floating-point environment, whatever
// the thread's own is: torch.set_flush_denormal changes the calling thread alone, and the result
// would depend on which thread computes what.
void lowbit_parallel(const lowbit_executor *executor, size_t tasks, lowbit_task task, void *arg);

static inline size_t lowbit_max_tasks(const lowbit_executor *executor) {
    return executor ? executor->max_tasks : 1;
}

#endif
