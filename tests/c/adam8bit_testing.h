// SPDX-License-Identifier: MIT
// Random steps of 8-bit Adam, for the operator and for its micro-kernels.
#ifndef LOWBIT_TESTS_ADAM8BIT_TESTING_H
#define LOWBIT_TESTS_ADAM8BIT_TESTING_H

#include "codebooks.h"

// A codebook of that kind for second moments: its magnitudes.
inline Tensor magnitudes(int kind, Random &random) {
    const Tensor values = codebook(kind, random);
    std::vector<float> sorted(256);
    for (size_t i = 0; i < 256; i++)
        sorted[i] = std::fabs(values.get(i, 0));
    std::sort(sorted.begin(), sorted.end());
    Tensor tensor = Tensor::vector(LOWBIT_FLOAT32, 256);
    for (size_t i = 0; i < 256; i++)
        tensor.set(i, 0, sorted[i]);
    tensor.make_read_only();
    return tensor;
}

inline int codebook_kind(Random &random, int usual) {
    return random.one_in(2) ? usual : (int)random.below(codebook_kinds);
}

// Everything but the parameters.
inline lowbit_adam8bit_step_args random_step(Random &random, const lowbit_tensor *codebook1,
                                             const lowbit_tensor *codebook2) {
    const double steps[] = {1, 2, 3, 10, 1000, 123457, 0x1p53};
    const double betas1[] = {0.9, 0.9, 0, 0.5, 0.95, 0.9999};
    const double betas2[] = {0.999, 0.999, 0, 0.25, 0.95, 0.999999};
    const double eps[] = {1e-8, 1e-8, 0, 1e-45, 1};
    lowbit_adam8bit_step_args args = {};
    args.codebook1 = codebook1;
    args.codebook2 = codebook2;
    args.step = random.pick(steps);
    args.lr = random.one_in(8) ? 0 : std::exp2(random.uniform(-20, 4));
    args.beta1 = random.pick(betas1);
    args.beta2 = random.pick(betas2);
    args.eps = random.pick(eps);
    args.weight_decay = random.one_in(2) ? 0 : random.uniform(0, 1);
    args.decoupled = random.one_in(2);
    args.maximize = random.one_in(2);
    args.blocksize = (size_t)32 << random.below(8);
    args.grad_scale = random.one_in(2) ? 1 : std::exp2(random.uniform(-10, 20));
    return args;
}

#endif
