// SPDX-License-Identifier: MIT

#include "adam8bit_check.h"
#include "cuda.h"

#include "../kernels/cuda/adam8bit/launch.h"

static const char op[] = "adam8bit_step_";

enum { AT_ONCE = 400 }; // parameters, which one launch takes

static enum lowbit_number number_of(lowbit_device_number number) {
    return number.type == LOWBIT_DEVICE_FLOAT64 ? LOWBIT_NUMBER_FLOAT64
           : number.type == LOWBIT_DEVICE_INT64 ? LOWBIT_NUMBER_INT64
                                                : LOWBIT_NUMBER_FLOAT32;
}

static struct lowbit_adam8bit_cuda_param param_of(const lowbit_adam8bit_param *p) {
    return (struct lowbit_adam8bit_cuda_param){
        .param = p->param.data,
        .grad = p->grad.data,
        .master = p->master ? p->master->data : NULL,
        .exp_avg = p->exp_avg.data,
        .exp_avg_absmax = p->exp_avg_absmax.data,
        .exp_avg_sq = p->exp_avg_sq.data,
        .exp_avg_sq_absmax = p->exp_avg_sq_absmax.data,
        .n = p->param.rows,
        .param_type = (enum lowbit_float)p->param.dtype,
        .grad_type = (enum lowbit_float)p->grad.dtype,
    };
}

lowbit_status lowbit_adam8bit_step_cuda(const lowbit_adam8bit_step_args *args,
                                        const lowbit_adam8bit_device_numbers *numbers,
                                        const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_adam8bit_check(args, executor));
    if (!executor || !executor->cuda)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: executor is no GPU, expected one", op);
    if (!numbers || !numbers->step.data || !numbers->lr.data)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: numbers, its step or its lr is null", op);
    const struct lowbit_adam8bit_cuda_args launched = {
        .codebook1 = args->codebook1->data,
        .codebook2 = args->codebook2->data,
        .step = numbers->step.data,
        .lr = numbers->lr.data,
        .step_type = number_of(numbers->step),
        .lr_type = number_of(numbers->lr),
        .beta1 = args->beta1,
        .beta2 = args->beta2,
        .eps = args->eps,
        .weight_decay = args->weight_decay,
        .decoupled = args->decoupled,
        .maximize = args->maximize,
        .blocksize = args->blocksize,
        .grad_scale = numbers->grad_scale,
        .found_inf = numbers->found_inf,
    };
    struct lowbit_adam8bit_cuda_param params[AT_ONCE];
    size_t count = 0;
    for (size_t i = 0; i < args->count; i++) {
        if (args->params[i].param.rows)
            params[count++] = param_of(&args->params[i]);
        if (count && (count == AT_ONCE || i + 1 == args->count)) {
            LOWBIT_TRY(lowbit_cuda_status(
                op, lowbit_adam8bit_step_launch(&launched, params, count, executor->cuda_stream)));
            count = 0;
        }
    }
    return LOWBIT_OK;
}
