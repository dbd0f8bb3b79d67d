// SPDX-License-Identifier: MIT

#include "adam8bit_rule.h"

#include "blockwise_codebook.h"

#include <math.h>

// By repeated squaring: pow may differ from one machine to the next.
static double power(double base, double exponent) {
    double product = 1.0;
    for (uint64_t n = (uint64_t)exponent; n; n /= 2) {
        if (n % 2)
            product *= base;
        base *= base;
    }
    return product;
}

void lowbit_adam8bit_rule_init(const lowbit_adam8bit_step_args *args,
                               struct lowbit_adam8bit_rule *rule) {
    const double c1 = 1.0 - power(args->beta1, args->step),
                 c2 = 1.0 - power(args->beta2, args->step);
    const double beta1_squared = args->beta1 * args->beta1;
    double floor = 0.0;
    if (beta1_squared < args->beta2)
        floor =
            sqrt((1.0 - args->beta2) * (1.0 - beta1_squared / args->beta2)) / (1.0 - args->beta1);
    const float scale = 1.0f / args->grad_scale;
    rule->b1 = (float)args->beta1;
    rule->r1 = (float)(1.0 - args->beta1);
    rule->b2 = (float)args->beta2;
    rule->r2 = (float)(1.0 - args->beta2);
    rule->size = (float)(args->lr * sqrt(c2) / c1);
    rule->e = fmaxf((float)(args->eps * sqrt(c2)), 0x1p-126f);
    rule->l2 = args->decoupled ? 0.0f : (float)args->weight_decay;
    rule->keep = args->decoupled ? (float)(1.0 - args->lr * args->weight_decay) : 1.0f;
    rule->floor = (float)floor;
    rule->scale = args->maximize ? -scale : scale;
    lowbit_blockwise_decoder_init(args->codebook1->data, &rule->decoder1);
    lowbit_blockwise_decoder_init(args->codebook2->data, &rule->decoder2);
    lowbit_blockwise_encoder_init(args->codebook1->data, &rule->encoder1);
    lowbit_blockwise_encoder_init(args->codebook2->data, &rule->encoder2);
}
