// SPDX-License-Identifier: MIT

#include "lowbit/adam8bit_step.h"

#include "adam8bit_check.h"
#include "adam8bit_dispatch.h"
#include "adam8bit_rule.h"
#include "blockwise_codebook.h"
#include "check.h"
#include "floats.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static const char op[] = "adam8bit_step_";

struct step {
    const lowbit_adam8bit_step_args *args;
    struct lowbit_adam8bit_ukernels ukernels;
    struct lowbit_adam8bit_rule rule;
    size_t blocks; // of all parameters
    atomic_size_t next;
};

enum { ELEMENTS = 16384 }; // in the blocks that one thread takes at a time

static size_t block_count(const lowbit_adam8bit_param *p, size_t blocksize) {
    return (p->param.rows + blocksize - 1) / blocksize;
}

static void prepare(void *arg, size_t task) {
    struct step *c = arg;
    (void)task;
    lowbit_adam8bit_rule_init(c->args, &c->rule);
}

// blocks of a parameter from number block on.
static void step_blocks(const struct step *c, const lowbit_adam8bit_param *p, size_t block,
                        size_t blocks) {
    const size_t blocksize = c->args->blocksize, i = block * blocksize;
    const size_t rest = p->param.rows - i, n = blocks * blocksize;
    const struct lowbit_adam8bit_part part = {
        .param = lowbit_float_row(&p->param, i),
        .grad = lowbit_float_row(&p->grad, i),
        .master = p->master ? (float *)p->master->data + i : NULL,
        .exp_avg = (uint8_t *)p->exp_avg.data + i,
        .exp_avg_absmax = (float *)p->exp_avg_absmax.data + block,
        .exp_avg_sq = (uint8_t *)p->exp_avg_sq.data + i,
        .exp_avg_sq_absmax = (float *)p->exp_avg_sq_absmax.data + block,
    };
    c->ukernels.step[p->param.dtype][p->grad.dtype](rest < n ? rest : n, blocksize, &part,
                                                    &c->rule);
}

// The blocks of all parameters are numbered in their order. What a thread takes only ever lies
// further on, so it goes through the list once.
static void step_some(void *arg, size_t task) {
    struct step *c = arg;
    const size_t blocksize = c->args->blocksize, taken = ELEMENTS / blocksize;
    const lowbit_adam8bit_param *p = c->args->params;
    size_t first = 0; // block of *p
    (void)task;
    for (size_t block; (block = taken * atomic_fetch_add(&c->next, 1)) < c->blocks;) {
        const size_t end = c->blocks - block < taken ? c->blocks : block + taken;
        while (block < end) {
            for (; block >= first + block_count(p, blocksize); p++)
                first += block_count(p, blocksize);
            const size_t behind = first + block_count(p, blocksize);
            const size_t stop = behind < end ? behind : end;
            step_blocks(c, p, block - first, stop - block);
            block = stop;
        }
    }
}

// An argument that is a number.
static lowbit_status check_number(const char *name, double value, bool holds, const char *rule) {
    if (holds)
        return LOWBIT_OK;
    return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: %s is %.17g, expected %s", op, name, value,
                       rule);
}

// By its bits: a thread that flushes subnormals takes a negative one for zero.
static bool not_negative(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits < 0x7ff0000000000000u || bits == 0x8000000000000000u;
}

// all: those too that are tensors for a GPU.
static lowbit_status check_numbers(const lowbit_adam8bit_step_args *a, bool all) {
    static const char size[] = "a finite number that is not negative";
    static const char fraction[] = "a number from 0 to less than 1";
    LOWBIT_TRY(check_number("beta1", a->beta1, not_negative(a->beta1) && a->beta1 < 1, fraction));
    LOWBIT_TRY(check_number("beta2", a->beta2, not_negative(a->beta2) && a->beta2 < 1, fraction));
    LOWBIT_TRY(check_number("eps", a->eps, not_negative(a->eps), size));
    LOWBIT_TRY(check_number("weight_decay", a->weight_decay, not_negative(a->weight_decay), size));
    if (!all)
        return LOWBIT_OK;
    LOWBIT_TRY(check_number("step", a->step,
                            a->step >= 1 && a->step <= 0x1p53 && a->step == floor(a->step),
                            "a whole number from 1 to 2^53"));
    LOWBIT_TRY(check_number("lr", a->lr, not_negative(a->lr), size));
    const uint32_t scale = lowbit_float_bits(a->grad_scale);
    return check_number("grad_scale", (double)a->grad_scale, scale && scale < 0x7f800000,
                        "a finite number above 0");
}

// A vector of params[index]. The name with its index is only made up for a message.
static lowbit_status check_vector(const char *list, size_t index, const lowbit_tensor *vector,
                                  unsigned dtypes, size_t size) {
    if (lowbit_check_vector(op, list, vector, dtypes, size) == LOWBIT_OK)
        return LOWBIT_OK;
    char name[64];
    snprintf(name, sizeof name, "%s[%zu]", list, index);
    return lowbit_check_vector(op, name, vector, dtypes, size);
}

static lowbit_status check_param(const lowbit_adam8bit_param *p, size_t i, size_t blocksize) {
    LOWBIT_TRY(check_vector("params", i, &p->param, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY));
    const size_t n = p->param.rows, blocks = block_count(p, blocksize);
    LOWBIT_TRY(check_vector("grads", i, &p->grad, LOWBIT_FLOAT_DTYPES, n));
    LOWBIT_TRY(check_vector("exp_avg", i, &p->exp_avg, LOWBIT_UINT8_DTYPE, n));
    LOWBIT_TRY(check_vector("exp_avg_absmax", i, &p->exp_avg_absmax, LOWBIT_FLOAT32_DTYPE, blocks));
    LOWBIT_TRY(check_vector("exp_avg_sq", i, &p->exp_avg_sq, LOWBIT_UINT8_DTYPE, n));
    LOWBIT_TRY(
        check_vector("exp_avg_sq_absmax", i, &p->exp_avg_sq_absmax, LOWBIT_FLOAT32_DTYPE, blocks));
    return p->master ? check_vector("masters", i, p->master, LOWBIT_FLOAT32_DTYPE, n) : LOWBIT_OK;
}

lowbit_status lowbit_adam8bit_check(const lowbit_adam8bit_step_args *a,
                                    const lowbit_executor *executor) {
    if (!a)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: args is null", op);
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_blocksize(op, a->blocksize));
    LOWBIT_TRY(check_numbers(a, lowbit_reads_data(executor)));
    LOWBIT_TRY(lowbit_check_codebook256(op, "codebook1", a->codebook1, executor));
    LOWBIT_TRY(lowbit_check_codebook256(op, "codebook2", a->codebook2, executor));
    if (lowbit_reads_data(executor)) {
        const uint32_t least = lowbit_float_bits(*(const float *)a->codebook2->data);
        if (least > 0x80000000)
            return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                               "%s: codebook2[0] is %g, expected values that are not negative", op,
                               (double)lowbit_float_from_bits(least));
    }
    if (a->count && !a->params)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: params is null, expected %zu of them", op,
                           a->count);
    for (size_t i = 0; i < a->count; i++)
        LOWBIT_TRY(check_param(&a->params[i], i, a->blocksize));
    return LOWBIT_OK;
}

lowbit_status lowbit_adam8bit_step(const lowbit_adam8bit_step_args *args,
                                   const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_adam8bit_check(args, executor));
    LOWBIT_ON_CUDA(executor,
                   lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                               "%s: executor is a GPU, expected lowbit_adam8bit_step_cuda", op));
    if (lowbit_float_bits(args->found_inf) << 1)
        return LOWBIT_OK;
    struct step c;
    c.args = args;
    c.ukernels = lowbit_adam8bit_select_ukernels(lowbit_cpu_isa());
    c.blocks = 0;
    for (size_t i = 0; i < args->count; i++)
        c.blocks += block_count(&args->params[i], args->blocksize);
    if (!c.blocks)
        return LOWBIT_OK;
    atomic_init(&c.next, 0);
    lowbit_parallel(executor, 1, prepare, &c);
    const size_t pieces = (c.blocks * args->blocksize + ELEMENTS - 1) / ELEMENTS;
    lowbit_parallel(executor,
                    lowbit_task_count(executor, pieces, (double)c.blocks * (double)args->blocksize),
                    step_some, &c);
    return LOWBIT_OK;
}
