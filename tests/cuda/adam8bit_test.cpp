// SPDX-License-Identifier: MIT
// The kernel of 8-bit Adam gives the bits of the CPU's library, in every order of threads.

#include "testing.h"

#include "../c/codebooks.h"
#include "../../kernels/cuda/adam8bit/launch.h"

#include <memory>

namespace {

// The magnitudes of some codebook.
Tensor magnitudes(int kind, Random &random) {
    const Tensor any = codebook(kind, random);
    std::vector<float> values;
    for (size_t i = 0; i < 256; i++)
        values.push_back(std::fabs(any.get(i, 0)));
    std::sort(values.begin(), values.end());
    Tensor sorted = Tensor::vector(LOWBIT_FLOAT32, 256);
    for (size_t i = 0; i < 256; i++)
        sorted.set(i, 0, values[i]);
    return sorted;
}

// Everything that a step changes, and the gradient.
struct Param {
    Tensor param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, master;
    bool has_master;

    Param(size_t n, size_t blocksize, lowbit_dtype param_dtype, lowbit_dtype grad_dtype,
          bool has_master)
        : param(Tensor::vector(param_dtype, n)), grad(Tensor::vector(grad_dtype, n)),
          exp_avg(Tensor::vector(LOWBIT_UINT8, n)),
          exp_avg_absmax(Tensor::vector(LOWBIT_FLOAT32, (n + blocksize - 1) / blocksize)),
          exp_avg_sq(Tensor::vector(LOWBIT_UINT8, n)),
          exp_avg_sq_absmax(Tensor::vector(LOWBIT_FLOAT32, (n + blocksize - 1) / blocksize)),
          master(Tensor::vector(LOWBIT_FLOAT32, has_master ? n : 0)), has_master(has_master) {}

    std::vector<Tensor *> tensors() {
        return {&param, &grad, &exp_avg, &exp_avg_absmax, &exp_avg_sq, &exp_avg_sq_absmax, &master};
    }
    Param copy() {
        Param other(param->rows, 1, param->dtype, grad->dtype, has_master);
        other.exp_avg_absmax = Tensor::vector(LOWBIT_FLOAT32, exp_avg_absmax->rows);
        other.exp_avg_sq_absmax = Tensor::vector(LOWBIT_FLOAT32, exp_avg_sq_absmax->rows);
        for (size_t i = 0; i < tensors().size(); i++)
            other.tensors()[i]->copy(*tensors()[i]);
        return other;
    }
    void fill(Random &random, Values values) {
        for (Tensor *tensor : {&param, &grad, &exp_avg_absmax, &exp_avg_sq_absmax, &master})
            ::fill(*tensor, random, values);
        for (Tensor *absmax : {&exp_avg_absmax, &exp_avg_sq_absmax})
            for (size_t i = 0; values != any_bits && i < (*absmax)->rows; i++)
                absmax->set(i, 0, std::fabs(absmax->get(i, 0)) * 0.1f);
        for (Tensor *codes : {&exp_avg, &exp_avg_sq})
            for (size_t i = 0; i < (*codes)->rows; i++)
                codes->at<uint8_t>(i, 0) = (uint8_t)random.bits();
        const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, 1e30f};
        for (size_t i = random.size(3000); i < grad->rows; i += random.size(3000))
            grad.set(i, 0, random.pick(special));
    }
    lowbit_adam8bit_param view() const {
        return {*(const lowbit_tensor *)param,
                *(const lowbit_tensor *)grad,
                *(const lowbit_tensor *)exp_avg,
                *(const lowbit_tensor *)exp_avg_absmax,
                *(const lowbit_tensor *)exp_avg_sq,
                *(const lowbit_tensor *)exp_avg_sq_absmax,
                has_master ? (const lowbit_tensor *)master : nullptr};
    }
};

// A list of parameters on the device.
class DeviceParams {
  public:
    DeviceParams(std::vector<Param> &params, const std::vector<size_t> &shifts) : params_(params) {
        for (size_t i = 0; i < params.size(); i++)
            for (Tensor *tensor : params[i].tensors())
                memory_.push_back(std::make_unique<DeviceTensor>(*tensor, shifts[i]));
    }
    std::vector<lowbit_adam8bit_cuda_param> views() const {
        std::vector<lowbit_adam8bit_cuda_param> views;
        for (size_t i = 0; i < params_.size(); i++) {
            const auto *m = &memory_[7 * i];
            const Param &p = params_[i];
            views.push_back({m[0]->data<void>(), m[1]->data<void>(),
                             p.has_master ? m[6]->data<float>() : nullptr, m[2]->data<uint8_t>(),
                             m[3]->data<float>(), m[4]->data<uint8_t>(), m[5]->data<float>(),
                             p.param->rows, (enum lowbit_float)p.param->dtype,
                             (enum lowbit_float)p.grad->dtype});
        }
        return views;
    }
    void expect_equal(std::vector<Param> &expected) const {
        static const char *const names[] = {"param",          "grad",       "exp_avg",
                                            "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax",
                                            "master"};
        for (size_t i = 0; i < memory_.size(); i++) {
            Tensor *want = expected[i / 7].tensors()[i % 7];
            Tensor have = Tensor::vector((*want)->dtype, (*want)->rows);
            memory_[i]->get(have);
            EXPECT_TRUE(same_bits(*want, have)) << names[i % 7] << "[" << i / 7 << "]";
        }
    }

  private:
    std::vector<Param> &params_;
    std::vector<std::unique_ptr<DeviceTensor>> memory_;
};

// The hyperparameters of a step, for the CPU and for the device.
struct Step {
    Tensor codebook1, codebook2;
    lowbit_adam8bit_step_args host;
    lowbit_adam8bit_cuda_args device;
    std::unique_ptr<DeviceTensor> device_codebook1, device_codebook2;
    Device<double> step, lr;
    Device<float> float_step, float_lr, grad_scale, found_inf;
    Device<int64_t> int_step;

    static int any_kind(Random &random) { return (int)random.below(codebook_kinds); }

    explicit Step(Random &random)
        : codebook1(codebook(random.one_in(2) ? dynamic_signed : any_kind(random), random)),
          codebook2(magnitudes(random.one_in(2) ? dynamic_unsigned : any_kind(random), random)),
          step(1), lr(1), float_step(1), float_lr(1), grad_scale(1), found_inf(1), int_step(1) {
        const double steps[] = {1, 2, 3, 10, 1000, 1234567, 0x1p53},
                     rates[] = {0, 1e-3, 0.0625, 100};
        const double betas[] = {0, 0.5, 0.9, 0.95, 0.999}, tiny[] = {0, 1e-8, 1e-3};
        const size_t blocksizes[] = {32, 64, 256, 256, 1024, 4096};
        const float scales[] = {1, 1024, 3, 1e-3f};
        host = {};
        host.codebook1 = codebook1;
        host.codebook2 = codebook2;
        host.step = random.pick(steps);
        host.lr = (double)(float)random.pick(rates);
        host.beta1 = random.pick(betas);
        host.beta2 = random.pick(betas);
        host.eps = random.pick(tiny);
        host.weight_decay = random.one_in(2) ? 0 : 0.01;
        host.decoupled = random.one_in(2);
        host.maximize = random.one_in(2);
        host.blocksize = random.pick(blocksizes);
        host.grad_scale = random.pick(scales);

        device_codebook1 = std::make_unique<DeviceTensor>(codebook1, 0);
        device_codebook2 = std::make_unique<DeviceTensor>(codebook2, 0);
        step.set({host.step});
        float_step.set({(float)host.step});
        int_step.set({(int64_t)host.step});
        lr.set({host.lr});
        float_lr.set({(float)host.lr});
        grad_scale.set({host.grad_scale});
        found_inf.set({0});
        device = {};
        device.codebook1 = device_codebook1->data<float>();
        device.codebook2 = device_codebook2->data<float>();
        device.step_type = (enum lowbit_number)random.below(3);
        const bool exact = (float)host.step == host.step;
        device.step = device.step_type == LOWBIT_NUMBER_INT64 ? (void *)int_step.data()
                      : device.step_type == LOWBIT_NUMBER_FLOAT32 && exact
                          ? (void *)float_step.data()
                          : (void *)step.data();
        if (device.step_type == LOWBIT_NUMBER_FLOAT32 && !exact)
            device.step_type = LOWBIT_NUMBER_FLOAT64;
        device.lr_type = random.one_in(2) ? LOWBIT_NUMBER_FLOAT32 : LOWBIT_NUMBER_FLOAT64;
        device.lr =
            device.lr_type == LOWBIT_NUMBER_FLOAT32 ? (void *)float_lr.data() : (void *)lr.data();
        device.beta1 = host.beta1;
        device.beta2 = host.beta2;
        device.eps = host.eps;
        device.weight_decay = host.weight_decay;
        device.decoupled = host.decoupled;
        device.maximize = host.maximize;
        device.blocksize = host.blocksize;
        device.grad_scale = host.grad_scale == 1 ? nullptr : grad_scale.data();
        device.found_inf = random.one_in(2) ? nullptr : found_inf.data();
    }

    std::string text() const {
        char text[200];
        std::snprintf(text, sizeof text,
                      "step %g lr %g betas %g %g eps %g decay %g %s %s blocksize %zu scale %g",
                      host.step, host.lr, host.beta1, host.beta2, host.eps, host.weight_decay,
                      host.decoupled ? "decoupled" : "L2", host.maximize ? "maximize" : "",
                      host.blocksize, (double)host.grad_scale);
        return text;
    }

    // What the CPU makes of the parameters.
    std::vector<Param> expected(std::vector<Param> &params) {
        std::vector<Param> after;
        std::vector<lowbit_adam8bit_param> views;
        for (Param &param : params)
            after.push_back(param.copy());
        for (const Param &param : after)
            views.push_back(param.view());
        host.params = views.data();
        host.count = views.size();
        EXPECT_EQ(lowbit_adam8bit_step(&host, nullptr), LOWBIT_OK) << lowbit_last_error();
        return after;
    }
};

const size_t sizes[] = {0, 1, 3, 31, 33, 255, 4095, 4096, 4097, 8192, 12000};

void expect_steps(Random &random, size_t count, size_t largest) {
    Step step(random);
    std::vector<Param> params;
    std::vector<size_t> shifts;
    std::string text = step.text();
    for (size_t i = 0; i < count; i++) {
        const size_t n = std::min(random.pick(sizes), largest);
        params.emplace_back(n, step.host.blocksize, random.pick(float_dtypes),
                            random.pick(float_dtypes), random.one_in(3));
        params.back().fill(random, random.pick(value_kinds));
        shifts.push_back(random.one_in(4) ? 4 * random.below(4) : 0);
        if (count < 10)
            text += ", " + std::to_string(n) + " " + dtype_name(params.back().param->dtype) + " " +
                    dtype_name(params.back().grad->dtype) +
                    (params.back().has_master ? " with master" : "");
    }
    SCOPED_TRACE(text);
    std::vector<Param> expected = step.expected(params);
    in_every_order([&] {
        const DeviceParams device(params, shifts);
        const auto views = device.views();
        EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, views.data(), views.size(), nullptr),
                  0);
        device.expect_equal(expected);
    });
}

TEST(CudaAdam8bit, Samples) {
    Random random(310);
    for (int i = 0; i < samples(60) && !HasFailure(); i++)
        expect_steps(random, random.size(5), 12000);
}

// Numbers of every size, and zeros: in and out of where the kernel takes its short way.
TEST(CudaAdam8bit, AnySize) {
    Random random(316);
    for (int i = 0; i < samples(60) && !HasFailure(); i++) {
        Step step(random);
        if (random.one_in(4))
            step.host.eps = step.device.eps = 1e9;
        std::vector<Param> params;
        const lowbit_dtype dtype = random.pick(float_dtypes);
        params.emplace_back(4096, step.host.blocksize, dtype, random.pick(float_dtypes),
                            random.one_in(3));
        Param &p = params.back();
        const int size = (int)random.below(200) - 150; // of a gradient, in binary
        const auto fill = [&](Tensor &tensor, int middle, bool with_sign) {
            for (size_t k = 0, end; k < tensor->rows; k = end) {
                end = std::min(tensor->rows, k + random.size(40));
                const float scale =
                    random.one_in(6) ? 0 : std::ldexp(1.0f, middle - 20 + (int)random.below(40));
                for (size_t j = k; j < end; j++)
                    tensor.set(j, 0,
                               (with_sign && random.one_in(2) ? -scale : scale) *
                                   (1 + (float)random.below(1 << 20) * 0x1p-20f));
            }
        };
        fill(p.grad, size, true);
        fill(p.param, size, true);
        fill(p.master, size, true);
        fill(p.exp_avg_absmax, size, false);
        fill(p.exp_avg_sq_absmax, 2 * size, false);
        const uint8_t zero = (uint8_t)(step.codebook1.get(127, 0) == 0 ? 127 : 0);
        for (size_t k = 0; k < 4096; k++) {
            p.exp_avg.at<uint8_t>(k, 0) = random.one_in(4) ? zero : (uint8_t)random.bits();
            p.exp_avg_sq.at<uint8_t>(k, 0) = random.one_in(4) ? 0 : (uint8_t)random.bits();
        }
        SCOPED_TRACE(step.text() + " " + dtype_name(dtype));
        std::vector<Param> expected = step.expected(params);
        const DeviceParams device(params, {0});
        const auto views = device.views();
        EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, views.data(), 1, nullptr), 0);
        device.expect_equal(expected);
    }
}

// So many that it takes two launches.
TEST(CudaAdam8bit, ManyParameters) {
    Random random(311);
    expect_steps(random, 450, 40);
}

TEST(CudaAdam8bit, NothingChangesWhereInfinityWasFound) {
    Random random(312);
    for (float found : {1.0f, -1.0f, NAN, 0x1p-149f}) {
        Step step(random);
        step.found_inf.set({found});
        step.device.found_inf = step.found_inf.data();
        std::vector<Param> params;
        params.emplace_back(5000, step.host.blocksize, LOWBIT_BFLOAT16, LOWBIT_FLOAT32, true);
        params.back().fill(random, ordinary);
        in_every_order([&] {
            const DeviceParams device(params, {0});
            EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, device.views().data(), 1, nullptr),
                      0);
            device.expect_equal(params);
        });
    }
}

TEST(CudaAdam8bit, NothingHappensWithoutElements) {
    Random random(313);
    Step step(random);
    EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, nullptr, 0, nullptr), 0);
    const lowbit_adam8bit_cuda_param none[2] = {};
    EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, none, 2, nullptr), 0);
}

TEST(CudaAdam8bit, AccessesAreCoalesced) {
    Random random(314);
    for (lowbit_dtype dtype : float_dtypes) {
        Step step(random);
        step.device.blocksize = 256;
        std::vector<Param> params;
        params.emplace_back(16384, 256, dtype, dtype, dtype != LOWBIT_FLOAT32);
        params.back().fill(random, ordinary);
        for (size_t i = 0; i < 16384; i++)
            params.back().grad.set(i, 0, 1);
        const DeviceParams device(params, {0});
        emu::reset();
        emu::settings.count = true;
        EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, device.views().data(), 1, nullptr), 0);
        emu::settings.count = false;
        EXPECT_EQ(emu::worst(emu::Space::global).ratio(), 1)
            << emu::worst(emu::Space::global).text();
        EXPECT_TRUE(emu::reports().empty()) << all_reports();
    }
}

// More elements than 32 bits count. Only the blocks of threads that have the last of them run.
TEST(CudaAdam8bit, ManyElements) {
    const size_t before = (size_t)1 << 32, n = 4100, blocksize = 256;
    Random random(315);
    Step step(random);
    step.host.blocksize = step.device.blocksize = blocksize;
    std::vector<Param> params;
    params.emplace_back(n, blocksize, LOWBIT_BFLOAT16, LOWBIT_BFLOAT16, false);
    params.back().fill(random, ordinary);
    std::vector<Param> expected = step.expected(params);
    const auto tensors = params.back().tensors(), wanted = expected.back().tensors();
    std::vector<std::unique_ptr<Device<uint8_t>>> memory;
    std::vector<uint8_t *> tails; // of the first six tensors
    for (int i = 0; i < 6; i++) {
        const size_t size = tensors[i]->buffer().size(), elements = (*tensors[i])->rows;
        const size_t skipped = (elements == n ? before : before / blocksize) * (size / elements);
        memory.push_back(std::make_unique<Device<uint8_t>>(skipped + size));
        tails.push_back(memory.back()->data() + skipped);
        EXPECT_CUDA(cudaMemcpy(tails.back(), (*tensors[i])->data, size, cudaMemcpyHostToDevice));
    }
    const lowbit_adam8bit_cuda_param param = {memory[0]->data(),
                                              memory[1]->data(),
                                              nullptr,
                                              memory[2]->data(),
                                              (float *)memory[3]->data(),
                                              memory[4]->data(),
                                              (float *)memory[5]->data(),
                                              before + n,
                                              bf16,
                                              bf16};
    emu::reset();
    emu::settings.multiprocessors = 1 << 22;
    emu::settings.first_block = before / 4096;
    EXPECT_EQ(lowbit_adam8bit_step_launch(&step.device, &param, 1, nullptr), 0);
    emu::settings = emu::Settings();
    EXPECT_TRUE(emu::reports().empty()) << all_reports();
    for (int i = 0; i < 6; i++) {
        EXPECT_CUDA(cudaMemcpy((*tensors[i])->data, tails[i], tensors[i]->buffer().size(),
                               cudaMemcpyDeviceToHost));
        EXPECT_TRUE(same_bits(*wanted[i], *tensors[i])) << i;
    }
}

} // namespace
