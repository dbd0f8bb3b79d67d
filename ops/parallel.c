// SPDX-License-Identifier: MIT

#include "parallel.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned environment;
enum { DEFAULT_MXCSR = 0x1f80 }; // all exceptions masked, round to nearest, no flush to zero
static environment enter(void) {
    environment saved = _mm_getcsr();
    _mm_setcsr(DEFAULT_MXCSR);
    return saved;
}
static void leave(environment saved) {
    _mm_setcsr(saved);
}
#else
#include <fenv.h>
typedef fenv_t environment;
static environment enter(void) {
    environment saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    return saved;
}
static void leave(environment saved) {
    fesetenv(&saved);
}
#endif

size_t lowbit_task_count(const lowbit_executor *executor, size_t pieces, double nanoseconds) {
    size_t tasks = lowbit_max_tasks(executor);
    if (tasks > pieces)
        tasks = pieces;
    if ((double)tasks * 20e3 > nanoseconds)
        tasks = (size_t)(nanoseconds / 20e3);
    return tasks ? tasks : 1;
}

struct call {
    lowbit_task task;
    void *arg;
};

static void run(void *arg, size_t index) {
    const struct call *call = arg;
    environment saved = enter();
    call->task(call->arg, index);
    leave(saved);
}

void lowbit_parallel(const lowbit_executor *executor, size_t tasks, lowbit_task task, void *arg) {
    struct call call = {task, arg};
    if (tasks == 1)
        run(&call, 0);
    else
        executor->parallel_for(executor->ctx, tasks, run, &call);
}
