// SPDX-License-Identifier: MIT

#include "lowbit/int8_matmul.h"

#include "check.h"
#include "int8_cuda.h"
#include "int8_product.h"

#include "lowbit/cpu.h"

#include <string.h>

static const char op[] = "int8_matmul";

struct matmul {
    struct lowbit_int8_product product;
    const lowbit_tensor *a, *out;
    size_t block; // the first row of the current block
    atomic_size_t next_unit;
};

// Copies rows of a to where the product reads them, with their sums.
static void prepare(void *arg, size_t task) {
    struct matmul *c = arg;
    struct lowbit_int8_product *p = &c->product;
    for (size_t m0; (m0 = LOWBIT_INT8_UNIT_M * atomic_fetch_add(&c->next_unit, 1)) < p->m;) {
        for (size_t m = m0; m < p->m && m < m0 + LOWBIT_INT8_UNIT_M; m++) {
            const int8_t *from = (const int8_t *)c->a->data + (c->block + m) * c->a->stride;
            int32_t sum = 0;
            for (size_t k = 0; k < p->k; k++)
                sum += from[k];
            if (p->k) // without columns there may be no data
                memcpy(lowbit_int8_product_row(p, task, m), from, p->k);
            p->xsum[m] = sum;
        }
        lowbit_int8_product_store(p, task, m0);
    }
}

static void finish(void *ctx, size_t task, size_t m0, size_t m, size_t n0, size_t n,
                   const int32_t *acc) {
    const struct matmul *c = ctx;
    (void)task;
    for (size_t i = 0; i < m; i++)
        memcpy((int32_t *)c->out->data + (c->block + m0 + i) * c->out->stride + n0,
               acc + i * LOWBIT_INT8_TILE_N, n * sizeof *acc);
}

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct lowbit_int8_product *product, uint32_t isa, size_t m, size_t n, size_t k,
                   size_t max_tasks, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    lowbit_int8_product_plan(product, isa, m, n, k, true, max_tasks, &arena);
    return arena.used;
}

size_t lowbit_int8_matmul_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks) {
    struct lowbit_int8_product product;
    const uint32_t isa = lowbit_cpu_isa();
    return isa && k <= LOWBIT_INT8_MATMUL_MAX_K ? plan(&product, isa, m, n, k, max_tasks, NULL) : 0;
}

static lowbit_status check(const lowbit_tensor *a, const lowbit_tensor *b, const lowbit_tensor *out,
                           const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_tensor(op, "a", a, LOWBIT_INT8_DTYPE, LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_contiguous(op, "b", b, LOWBIT_INT8_DTYPE, LOWBIT_ANY, a->cols));
    LOWBIT_TRY(lowbit_check_tensor(op, "out", out, LOWBIT_INT32_DTYPE, a->rows, b->rows));
    if (a->cols > LOWBIT_INT8_MATMUL_MAX_K)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: a has K = %zu columns, expected at most %d", op, a->cols,
                           LOWBIT_INT8_MATMUL_MAX_K);
    return LOWBIT_OK;
}

lowbit_status lowbit_int8_matmul(const lowbit_tensor *a, const lowbit_tensor *b,
                                 const lowbit_tensor *out, const lowbit_executor *executor,
                                 void *workspace, size_t workspace_size) {
    LOWBIT_TRY(check(a, b, out, executor));
    LOWBIT_ON_CUDA(executor, lowbit_int8_matmul_cuda(op, a, b, out, executor->cuda_stream));
    struct matmul c = {.a = a, .out = out};
    struct lowbit_int8_product *p = &c.product;
    const uint32_t isa = lowbit_cpu_isa();
    const size_t max_tasks = lowbit_max_tasks(executor);
    const size_t needed = plan(p, isa, a->rows, b->rows, a->cols, max_tasks, NULL);
    LOWBIT_TRY(lowbit_check_workspace(op, workspace, workspace_size, needed));
    plan(p, isa, a->rows, b->rows, a->cols, max_tasks, workspace);
    p->weight = b->data;
    p->finish = finish;
    p->ctx = &c;
    for (c.block = 0; c.block < a->rows; c.block += LOWBIT_INT8_BLOCK_M) {
        p->m = a->rows - c.block < LOWBIT_INT8_BLOCK_M ? a->rows - c.block : LOWBIT_INT8_BLOCK_M;
        const size_t units = (p->m + LOWBIT_INT8_UNIT_M - 1) / LOWBIT_INT8_UNIT_M;
        atomic_store(&c.next_unit, 0);
        lowbit_parallel(executor, lowbit_task_count(executor, units, (double)(p->m * p->k)),
                        prepare, &c);
        lowbit_int8_product_run(p, executor);
    }
    return LOWBIT_OK;
}
