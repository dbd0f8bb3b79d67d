// SPDX-License-Identifier: MIT
// A libFuzzer target: adam8bit_step_ with descriptors, codebooks and numbers that may break any rule.
// What is accepted must equal the reference in bits.

#include "fuzzing.h"

namespace {

struct Param {
    Tensor param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, master;

    Param(Source &source, size_t n, size_t blocks)
        : param(source, FLOATS, n, 1, false), grad(source, FLOATS, n, 1, false),
          exp_avg(source, UINT8, n, 1, false), exp_avg_absmax(source, FLOAT32, blocks, 1, false),
          exp_avg_sq(source, UINT8, n, 1, false),
          exp_avg_sq_absmax(source, FLOAT32, blocks, 1, false),
          master(source, FLOAT32, n, 1, true) {}

    std::vector<Tensor *> outputs() {
        return {&param, &exp_avg, &exp_avg_absmax, &exp_avg_sq, &exp_avg_sq_absmax, &master};
    }
    lowbit_adam8bit_param view() const {
        return {param.view,      grad.view,
                exp_avg.view,    exp_avg_absmax.view,
                exp_avg_sq.view, exp_avg_sq_absmax.view,
                master};
    }
};

// Mostly the usual one, sometimes any bits.
double number(Source &source, double usual) {
    std::vector<uint8_t> bits(sizeof usual);
    if (source.one_in(16)) {
        source.fill(bits);
        std::memcpy(&usual, bits.data(), sizeof usual);
    }
    return usual;
}

// From 1 down to 2^-32.
double fraction(Source &source) {
    return std::exp2(-source.byte() / 8.0);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Source source(data, size);
    choose_isa(source);
    lowbit_adam8bit_step_args args{};
    args.step = number(source, source.byte() + 1);
    args.lr = number(source, fraction(source));
    args.beta1 = number(source, 1 - fraction(source));
    args.beta2 = number(source, 1 - fraction(source));
    args.eps = number(source, fraction(source));
    args.weight_decay = number(source, source.one_in(2) ? fraction(source) : 0);
    args.grad_scale = (float)number(source, 1 / fraction(source));
    args.found_inf = source.one_in(16) ? (float)number(source, 1) : 0;
    args.decoupled = source.one_in(2);
    args.maximize = source.one_in(2);
    args.blocksize = source.one_in(64) ? source.byte() + 1u : (size_t)32 << source.byte() % 8;
    Tensor codebook1 = codebook(source), codebook2 = codebook(source, false);
    args.codebook1 = codebook1;
    args.codebook2 = codebook2;

    std::vector<Param> params;
    std::vector<lowbit_adam8bit_param> views;
    std::vector<Tensor *> outputs;
    params.reserve(4); // the views point there
    for (size_t count = source.byte() % 4; count; count--) {
        const size_t n = (source.byte() * 256u + source.byte()) % 1000;
        Param &param = params.emplace_back(source, n, (n + args.blocksize - 1) / args.blocksize);
        views.push_back(param.view());
        for (Tensor *output : param.outputs())
            outputs.push_back(output);
    }
    args.params = views.data();
    args.count = views.size();
    compare(
        outputs, [&] { return lowbit_adam8bit_step(&args, nullptr); },
        [&] { reference_adam8bit_step(&args); });
    return 0;
}
