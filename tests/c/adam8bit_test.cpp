// SPDX-License-Identifier: MIT
// adam8bit_step equals the reference in bits: at every instruction set, with every executor, in any
// floating-point environment, for any list of parameters. It refuses what breaks a rule, and then
// changes nothing.

#include "adam8bit_testing.h"

#include <numeric>

namespace {

// A parameter with its gradient and state, guarded.
struct Param {
    Tensor param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, master;
    bool has_master;

    Param(lowbit_dtype dtype, lowbit_dtype grad_dtype, size_t n, size_t blocksize, bool with_master)
        : param(Tensor::vector(dtype, n)), grad(Tensor::vector(grad_dtype, n)),
          exp_avg(Tensor::vector(LOWBIT_UINT8, n)),
          exp_avg_absmax(Tensor::vector(LOWBIT_FLOAT32, (n + blocksize - 1) / blocksize)),
          exp_avg_sq(Tensor::vector(LOWBIT_UINT8, n)),
          exp_avg_sq_absmax(Tensor::vector(LOWBIT_FLOAT32, (n + blocksize - 1) / blocksize)),
          master(Tensor::vector(LOWBIT_FLOAT32, n)), has_master(with_master) {}

    std::vector<const Tensor *> tensors() const {
        return {&param, &grad, &exp_avg, &exp_avg_absmax, &exp_avg_sq, &exp_avg_sq_absmax, &master};
    }

    Param copy() const {
        Param other(param->dtype, grad->dtype, param->rows, 1, has_master);
        other.exp_avg_absmax = Tensor::vector(LOWBIT_FLOAT32, exp_avg_absmax->rows);
        other.exp_avg_sq_absmax = Tensor::vector(LOWBIT_FLOAT32, exp_avg_sq_absmax->rows);
        other.take(*this);
        return other;
    }
    void take(const Param &from) {
        for (size_t i = 0; i < tensors().size(); i++)
            const_cast<Tensor *>(tensors()[i])->copy(*from.tensors()[i]);
    }

    lowbit_adam8bit_param view() const {
        return {*param.operator->(),
                *grad.operator->(),
                *exp_avg.operator->(),
                *exp_avg_absmax.operator->(),
                *exp_avg_sq.operator->(),
                *exp_avg_sq_absmax.operator->(),
                has_master ? (const lowbit_tensor *)master : nullptr};
    }
};

const char *const names[] = {
    "params", "grads", "exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax", "masters"};

// A list of them, and a call's view of it.
struct List {
    std::vector<Param> params;
    std::vector<lowbit_adam8bit_param> views;

    List copy() const {
        List other;
        for (const Param &param : params)
            other.params.push_back(param.copy());
        return other;
    }
    void take(const List &from) {
        for (size_t i = 0; i < params.size(); i++)
            params[i].take(from.params[i]);
    }
    void show(lowbit_adam8bit_step_args &args) {
        views.clear();
        for (const Param &param : params)
            views.push_back(param.view());
        args.params = views.data();
        args.count = views.size();
    }
    void expect_same(const List &other) const {
        for (size_t i = 0; i < params.size(); i++)
            for (size_t j = 0; j < std::size(names); j++)
                EXPECT_TRUE(same_bits(*params[i].tensors()[j], *other.params[i].tensors()[j]))
                    << names[j] << "[" << i << "]";
    }
};

List random_list(Random &random, size_t blocksize) {
    List list;
    for (size_t count = random.below(6); count; count--) {
        Param p(random.pick(float_dtypes), random.pick(float_dtypes),
                random.size(20000) - random.one_in(10), blocksize, random.one_in(2));
        const Values values = random.pick(value_kinds);
        fill(p.param, random, random.pick(value_kinds));
        fill(p.grad, random, values);
        fill(p.master, random, random.pick(value_kinds));
        fill(p.exp_avg_absmax, random, values);
        fill(p.exp_avg_sq_absmax, random, values);
        for (size_t i = 0; values != any_bits && i < p.exp_avg_sq_absmax->rows; i++)
            p.exp_avg_sq_absmax.set(i, 0, std::fabs(p.exp_avg_sq_absmax.get(i, 0)));
        for (size_t i = 0; i < p.param->rows; i++) {
            p.exp_avg.at<uint8_t>(i, 0) = (uint8_t)random.bits();
            p.exp_avg_sq.at<uint8_t>(i, 0) = (uint8_t)random.bits();
        }
        const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e20f, FLT_MIN};
        for (size_t i = random.size(3000); i < p.param->rows; i += random.size(3000))
            p.grad.set(i, 0, random.pick(special));
        list.params.push_back(std::move(p));
    }
    return list;
}

TEST(Adam8bitStep, Samples) {
    Random random(230);
    for (int i = 0; i < samples(120) && !HasFailure(); i++) {
        const Tensor codebook1 = codebook(codebook_kind(random, dynamic_signed), random);
        const Tensor codebook2 = magnitudes(codebook_kind(random, dynamic_unsigned), random);
        lowbit_adam8bit_step_args args = random_step(random, codebook1, codebook2);
        const List before = random_list(random, args.blocksize);
        List want = before.copy(), have = before.copy();
        want.show(args);
        reference_adam8bit_step(&args);
        have.show(args);
        expect_everywhere(
            [&](const Executor &executor) {
                have.take(before);
                return lowbit_adam8bit_step(&args, executor);
            },
            [&] { want.expect_same(have); });
    }
}

// One call for all parameters, in any order, is as good as a call for each.
TEST(Adam8bitStep, OrderAndGroupingDoNotMatter) {
    Random random(231);
    for (int i = 0; i < samples(40) && !HasFailure(); i++) {
        const Tensor codebook1 = codebook(dynamic_signed, random);
        const Tensor codebook2 = magnitudes(dynamic_unsigned, random);
        lowbit_adam8bit_step_args args = random_step(random, codebook1, codebook2);
        const List before = random_list(random, args.blocksize);
        List alone = before.copy(), together = before.copy();
        alone.show(args);
        for (const lowbit_adam8bit_param &view : alone.views) {
            lowbit_adam8bit_step_args one = args;
            one.params = &view;
            one.count = 1;
            ASSERT_EQ(lowbit_adam8bit_step(&one, nullptr), LOWBIT_OK) << lowbit_last_error();
        }
        together.show(args);
        std::reverse(together.views.begin(), together.views.end());
        const Executor executor(ways[5]);
        ASSERT_EQ(lowbit_adam8bit_step(&args, executor), LOWBIT_OK) << lowbit_last_error();
        alone.expect_same(together);
    }
}

// All threads work, and one call of the executor suffices.
TEST(Adam8bitStep, SharesManySmallParameters) {
    Random random(232);
    const Tensor codebook1 = codebook(dynamic_signed, random);
    const Tensor codebook2 = magnitudes(dynamic_unsigned, random);
    lowbit_adam8bit_step_args args = random_step(random, codebook1, codebook2);
    List list;
    for (int i = 0; i < 300; i++)
        list.params.emplace_back(LOWBIT_FLOAT32, LOWBIT_FLOAT32, 400, args.blocksize, false);
    list.show(args);
    struct Calls {
        size_t calls, tasks;
    } calls = {};
    const lowbit_executor executor = {[](void *ctx, size_t tasks, lowbit_task task, void *arg) {
                                          auto *seen = (Calls *)ctx;
                                          *seen = {seen->calls + 1, tasks};
                                          for (size_t i = 0; i < tasks; i++)
                                              task(arg, i);
                                      },
                                      4, &calls, false, nullptr};
    ASSERT_EQ(lowbit_adam8bit_step(&args, &executor), LOWBIT_OK);
    EXPECT_EQ(calls.calls, 1u);
    EXPECT_EQ(calls.tasks, 4u);
}

// The rest checks the specification itself, by hand.

// A parameter of 300 elements that begins at 1 with zero state.
struct Fresh {
    Random random{233};
    Tensor codebook1 = codebook(dynamic_signed, random);
    Tensor codebook2 = magnitudes(dynamic_unsigned, random);
    List list;
    lowbit_adam8bit_step_args args = {};

    explicit Fresh(lowbit_dtype dtype = LOWBIT_FLOAT32, bool with_master = false) {
        args.codebook1 = codebook1;
        args.codebook2 = codebook2;
        args.step = 1;
        args.lr = 0.125;
        args.beta1 = 0.9;
        args.beta2 = 0.999;
        args.eps = 1e-8;
        args.blocksize = 256;
        args.grad_scale = 1;
        Param p(dtype, LOWBIT_FLOAT32, 300, 256, with_master);
        for (size_t i = 0; i < 300; i++) {
            p.param.set(i, 0, 1);
            p.master.set(i, 0, 1);
            p.grad.set(i, 0, 0);
            p.exp_avg.at<uint8_t>(i, 0) = 127;
            p.exp_avg_sq.at<uint8_t>(i, 0) = 0;
        }
        for (size_t i = 0; i < 2; i++) {
            p.exp_avg_absmax.set(i, 0, 0);
            p.exp_avg_sq_absmax.set(i, 0, 0);
        }
        list.params.push_back(std::move(p));
        list.show(args);
    }
    Param &p() { return list.params[0]; }
    void step() {
        ASSERT_EQ(lowbit_adam8bit_step(&args, nullptr), LOWBIT_OK) << lowbit_last_error();
    }
};

TEST(Adam8bitStep, TheFirstStepIsTheLearningRate) {
    Fresh f;
    for (size_t i = 0; i < 300; i++)
        f.p().grad.set(i, 0, (i % 2 ? 1 : -1) * std::ldexp(1.0f, (int)(i % 10)));
    f.step();
    for (size_t i = 0; i < 300; i++)
        EXPECT_NEAR(f.p().param.get(i, 0), 1 + (i % 2 ? -0.125 : 0.125), 1e-6) << i;
    EXPECT_FLOAT_EQ(f.p().exp_avg_absmax.get(0, 0), 0.1f * 512);
    EXPECT_FLOAT_EQ(f.p().exp_avg_sq_absmax.get(0, 0), 0.001f * 512 * 512);
}

TEST(Adam8bitStep, WithoutAGradientNothingMoves) {
    Fresh f;
    const List before = f.list.copy();
    for (f.args.step = 1; f.args.step < 20; f.args.step++)
        f.step();
    before.expect_same(f.list);
    f.p().grad.set(7, 0, 1); // one element's gradient moves that element alone
    f.step();
    for (size_t i = 0; i < 300; i++)
        EXPECT_EQ(f.p().param.get(i, 0) == 1, i != 7) << i;
}

TEST(Adam8bitStep, DecayMultipliesOrJoinsTheGradient) {
    for (bool decoupled : {true, false}) {
        Fresh f;
        f.args.weight_decay = 0.5;
        f.args.decoupled = decoupled;
        f.step();
        for (size_t i = 0; i < 300; i++) // 1 - lr * decay; or a gradient of 0.5, so one step of lr
            EXPECT_NEAR(f.p().param.get(i, 0), decoupled ? 0.9375 : 0.875, 1e-6) << i;
    }
}

TEST(Adam8bitStep, ScalesAndMaximizes) {
    Fresh plain, scaled;
    for (size_t i = 0; i < 300; i++) {
        plain.p().grad.set(i, 0, plain.random.uniform(-1, 1));
        scaled.p().grad.set(i, 0, plain.p().grad.get(i, 0) * -1024);
    }
    scaled.args.grad_scale = 1024;
    scaled.args.maximize = true;
    plain.step();
    scaled.step();
    EXPECT_TRUE(same_bits(plain.p().param, scaled.p().param));
    EXPECT_TRUE(same_bits(plain.p().exp_avg, scaled.p().exp_avg));
    EXPECT_TRUE(same_bits(plain.p().exp_avg_sq_absmax, scaled.p().exp_avg_sq_absmax));
}

TEST(Adam8bitStep, AGradientThatIsNotFiniteStaysInItsElement) {
    Fresh clean, dirty;
    for (Fresh *f : {&clean, &dirty}) {
        f->args.weight_decay = 0.5;
        f->args.decoupled = true;
        for (f->args.step = 1; f->args.step < 4; f->args.step++) {
            for (size_t i = 0; i < 300; i++)
                f->p().grad.set(i, 0, f->args.step == 3 && i % 50 == 7 ? 0 : (float)i);
            const float bad[] = {NAN, INFINITY, -INFINITY, 1e20f, -FLT_MAX, -NAN};
            const Param before = f->p().copy();
            for (size_t i = 0; f == &dirty && f->args.step == 3 && i < 6; i++)
                f->p().grad.set(50 * i + 7, 0, bad[i]);
            f->step();
            for (size_t i = 7; f == &dirty && f->args.step == 3 && i < 300; i += 50)
                EXPECT_EQ(f->p().param.get(i, 0), before.param.get(i, 0)) << i;
        }
    }
    for (size_t i = 0; i < 300; i++) {
        if (i % 50 == 7)
            continue;
        EXPECT_EQ(clean.p().param.get(i, 0), dirty.p().param.get(i, 0)) << i;
    }
}

// A second moment that has become zero while the first has not.
TEST(Adam8bitStep, ALostSecondMomentMakesNoHugeStep) {
    Fresh f;
    f.p().exp_avg.at<uint8_t>(3, 0) = 254;
    f.p().exp_avg_absmax.set(0, 0, 1);
    f.args.step = 1000;
    f.step();
    // |m| / d <= 1 / floor, 7.27 for these betas; sqrt(c2) is 0.795
    const double moved = 1 - f.p().param.get(3, 0);
    EXPECT_NEAR(moved, 0.125 * 0.795 * 7.27, 0.002);
}

TEST(Adam8bitStep, TheMasterKeepsWhatTheParameterCannot) {
    Fresh f(LOWBIT_BFLOAT16, true);
    f.args.lr = 0x1p-12; // below half a unit of bf16 at 1
    for (f.args.step = 1; f.args.step <= 16; f.args.step++) {
        for (size_t i = 0; i < 300; i++)
            f.p().grad.set(i, 0, 1);
        f.step();
        const float exact = 1 - (float)f.args.step * 0x1p-12f;
        EXPECT_NEAR(f.p().master.get(5, 0), exact, 1e-5);
        EXPECT_EQ(f.p().param.get(5, 0),
                  reference_from_half(LOWBIT_BFLOAT16,
                                      reference_to_half(LOWBIT_BFLOAT16, f.p().master.get(5, 0))));
    }
    EXPECT_LT(f.p().param.get(5, 0), 1);
}

TEST(Adam8bitStep, FoundInfChangesNothing) {
    for (float found : {1.0f, -1.0f, (float)NAN, FLT_TRUE_MIN}) {
        Fresh f;
        for (size_t i = 0; i < 300; i++)
            f.p().grad.set(i, 0, 1);
        const List before = f.list.copy();
        f.args.found_inf = found;
        HostileEnvironment environment(true);
        f.step();
        before.expect_same(f.list);
    }
}

TEST(Adam8bitStep, NothingToDo) {
    Fresh f;
    f.args.count = 0;
    f.args.params = nullptr;
    f.step();
    f.list.params.clear();
    f.list.params.emplace_back(LOWBIT_FLOAT16, LOWBIT_BFLOAT16, 0, 256, true);
    f.list.show(f.args);
    f.step();
}

// Errors

void expect_refused(Fresh &f, const std::vector<std::string> &words,
                    const lowbit_executor *executor = nullptr) {
    const List before = f.list.copy();
    EXPECT_EQ(lowbit_adam8bit_step(&f.args, executor), LOWBIT_INVALID_ARGUMENT);
    const std::string message = lowbit_last_error();
    EXPECT_EQ(message.rfind("adam8bit_step_: ", 0), 0u) << message;
    for (const std::string &word : words)
        EXPECT_NE(message.find(word), std::string::npos) << message << " lacks " << word;
    before.expect_same(f.list);
}

TEST(Adam8bitErrors, Numbers) {
    using Args = lowbit_adam8bit_step_args;
    const struct {
        const char *name;
        double Args::*number;
        std::vector<double> bad;
        const char *rule;
    } numbers[] = {
        {"step", &Args::step, {0, -1, 1.5, NAN, INFINITY, 0x1p54}, "whole number from 1"},
        {"lr", &Args::lr, {-1e-3, NAN, INFINITY, -5e-324}, "not negative"},
        {"beta1", &Args::beta1, {-0.1, 1, 2, NAN}, "less than 1"},
        {"beta2", &Args::beta2, {-0.1, 1, 2, NAN}, "less than 1"},
        {"eps", &Args::eps, {-1e-8, NAN, INFINITY}, "not negative"},
        {"weight_decay", &Args::weight_decay, {-1, NAN, INFINITY}, "not negative"},
    };
    for (const auto &number : numbers)
        for (double bad : number.bad) {
            Fresh f;
            f.args.*number.number = bad;
            HostileEnvironment environment(true);
            expect_refused(f, {number.name, number.rule});
        }
    for (float bad : {0.0f, -0.0f, -1.0f, (float)NAN, INFINITY}) {
        Fresh f;
        f.args.grad_scale = bad;
        expect_refused(f, {"grad_scale", "above 0"});
    }
    for (size_t bad : {0, 16, 100, 8192}) {
        Fresh f;
        f.args.blocksize = bad;
        expect_refused(f, {"blocksize", std::to_string(bad), "power of two"});
    }
}

TEST(Adam8bitErrors, Codebooks) {
    for (int which : {1, 2}) {
        const std::string name = "codebook" + std::to_string(which);
        const auto refuse = [&](const lowbit_tensor *bad, const std::vector<std::string> &words) {
            Fresh f;
            (which == 1 ? f.args.codebook1 : f.args.codebook2) = bad;
            std::vector<std::string> all = words;
            all.push_back(name);
            expect_refused(f, all);
        };
        refuse(nullptr, {"null"});
        refuse(Tensor::vector(LOWBIT_FLOAT32, 255), {"255", "256"});
        refuse(Tensor::vector(LOWBIT_FLOAT16, 256), {"float16", "float32"});
        Tensor values = Tensor::vector(LOWBIT_FLOAT32, 256);
        for (size_t i = 0; i < 256; i++)
            values.set(i, 0, (float)i);
        values.set(9, 0, 3);
        refuse(values, {"[9]", "ascending"});
        values.set(9, 0, NAN);
        refuse(values, {"[9]", "finite"});
    }
    Fresh f;
    f.args.codebook2 = f.args.codebook1;
    expect_refused(f, {"codebook2[0]", "not negative"});
}

TEST(Adam8bitErrors, Parameters) {
    using View = lowbit_adam8bit_param;
    const struct {
        const char *name;
        lowbit_tensor View::*tensor;
        lowbit_dtype wrong;
    } parts[] = {
        {"params[1]", &View::param, LOWBIT_INT32},
        {"grads[1]", &View::grad, LOWBIT_INT8},
        {"exp_avg[1]", &View::exp_avg, LOWBIT_INT8},
        {"exp_avg_absmax[1]", &View::exp_avg_absmax, LOWBIT_FLOAT16},
        {"exp_avg_sq[1]", &View::exp_avg_sq, LOWBIT_FLOAT32},
        {"exp_avg_sq_absmax[1]", &View::exp_avg_sq_absmax, LOWBIT_BFLOAT16},
    };
    const auto two = [](Fresh &f) { // the first is valid, and must not be stepped either
        f.list.params.push_back(f.p().copy());
        f.list.show(f.args);
    };
    for (const auto &part : parts) {
        Fresh f;
        two(f);
        f.list.views[1].*part.tensor = *Tensor::vector(part.wrong, 300).operator->();
        expect_refused(f, {part.name, dtype_name(part.wrong), "expected"});
        if (part.tensor != &View::param) { // its size is what the others must have
            f.list.show(f.args);
            (f.list.views[1].*part.tensor).rows--;
            expect_refused(f, {part.name, "rows", "expected"});
        }
        f.list.show(f.args);
        (f.list.views[1].*part.tensor).data = nullptr;
        expect_refused(f, {part.name, "no data"});
        f.list.show(f.args);
        (f.list.views[1].*part.tensor).stride = 2;
        expect_refused(f, {part.name, "stride 2"});
    }
    Fresh f(LOWBIT_FLOAT16, true);
    two(f);
    lowbit_tensor master = *f.list.params[1].master.operator->();
    f.list.views[1].master = &master;
    master.rows = 299;
    expect_refused(f, {"masters[1]", "299", "300"});
    master.rows = 300;
    master.dtype = LOWBIT_FLOAT16;
    expect_refused(f, {"masters[1]", "float16", "float32"});
}

TEST(Adam8bitErrors, Calls) {
    EXPECT_EQ(lowbit_adam8bit_step(nullptr, nullptr), LOWBIT_INVALID_ARGUMENT);
    Fresh f;
    f.args.params = nullptr;
    expect_refused(f, {"params is null", "1"});
    f.list.show(f.args);
    const lowbit_executor executor = {};
    expect_refused(f, {"executor"}, &executor);
}

} // namespace
