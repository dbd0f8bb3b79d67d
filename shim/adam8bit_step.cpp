// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

using Tensors = std::vector<Tensor>;

static void check_count(const Op &op, const char *list, const Tensors &tensors,
                        const Tensors &params) {
    if (tensors.size() != params.size())
        refuse(op, list, " holds ", tensors.size(),
               " tensors, expected as many as params: ", params.size());
}

// Tensor i of a list, as a vector of its elements. Its full name is made up only for a message: a
// model has hundreds of parameters.
static lowbit_tensor element(const Op &op, const char *list, const Tensors &tensors, size_t i) {
    try {
        return flat_of(op, list, tensors[i]).tensor;
    } catch (const std::exception &) {
        const std::string name = std::string(list) + "[" + std::to_string(i) + "]";
        return flat_of(op, name.c_str(), tensors[i]).tensor;
    }
}

static void check_like_param(const Op &op, const char *list, const Tensors &tensors,
                             const Tensors &params, size_t i) {
    const auto given = tensors[i].sizes(), expected = params[i].sizes();
    if (!given.equals(expected))
        refuse(op, list, "[", i, "] has shape ", to_string(shape_of(tensors[i])), ", expected ",
               to_string(shape_of(params[i])), ", that of params[", i, "]");
}

// A tensor of one element.
class Number {
  public:
    Number(const Op &op, const char *name, const Tensor &tensor)
        : data_(tensor.const_data_ptr()), type_(tensor.scalar_type()) {
        check_device(op, name, tensor);
        if (tensor.numel() != 1)
            refuse(op, name, " has shape ", to_string(shape_of(tensor)), ", expected one element");
        if (type_ != ScalarType::Double && type_ != ScalarType::Float && type_ != ScalarType::Long)
            refuse(op, name, " has dtype ", to_string(type_),
                   ", expected int64, float32 or float64");
    }
    template <class T> const T *as() const { return static_cast<const T *>(data_); }
    // On the CPU, exactly.
    double value() const {
        return type_ == ScalarType::Double  ? *as<double>()
               : type_ == ScalarType::Float ? *as<float>()
                                            : static_cast<double>(*as<int64_t>());
    }
    lowbit_device_number on_device() const {
        return {data_, type_ == ScalarType::Double  ? lowbit_device_number::LOWBIT_DEVICE_FLOAT64
                       : type_ == ScalarType::Float ? lowbit_device_number::LOWBIT_DEVICE_FLOAT32
                                                    : lowbit_device_number::LOWBIT_DEVICE_INT64};
    }

  private:
    const void *data_;
    ScalarType type_;
};

static std::optional<Number> float_of(const Op &op, const char *name,
                                      const OptionalTensor &tensor) {
    if (!tensor)
        return std::nullopt;
    if (tensor->scalar_type() != ScalarType::Float)
        refuse(op, name, " has dtype ", to_string(tensor->scalar_type()), ", expected float32");
    return Number(op, name, *tensor);
}

static void adam8bit_step_(Tensors params, Tensors grads, Tensors exp_avg, Tensors exp_avg_absmax,
                           Tensors exp_avg_sq, Tensors exp_avg_sq_absmax, Tensors masters,
                           const Tensor &codebook1, const Tensor &codebook2, const Tensor &step,
                           const Tensor &lr, double beta1, double beta2, double eps,
                           double weight_decay, bool decoupled, bool maximize, int64_t blocksize,
                           OptionalTensor grad_scale, OptionalTensor found_inf) {
    const Op op("adam8bit_step_", codebook1);
    check_no_grad(op);
    check_blocksize(op, blocksize);
    check_count(op, "grads", grads, params);
    check_count(op, "exp_avg", exp_avg, params);
    check_count(op, "exp_avg_absmax", exp_avg_absmax, params);
    check_count(op, "exp_avg_sq", exp_avg_sq, params);
    check_count(op, "exp_avg_sq_absmax", exp_avg_sq_absmax, params);
    if (!masters.empty())
        check_count(op, "masters", masters, params);
    std::vector<lowbit_tensor> floats(masters.size());
    std::vector<lowbit_adam8bit_param> all(params.size());
    for (size_t i = 0; i < all.size(); i++) {
        check_like_param(op, "grads", grads, params, i);
        all[i] = {
            .param = element(op, "params", params, i),
            .grad = element(op, "grads", grads, i),
            .exp_avg = element(op, "exp_avg", exp_avg, i),
            .exp_avg_absmax = element(op, "exp_avg_absmax", exp_avg_absmax, i),
            .exp_avg_sq = element(op, "exp_avg_sq", exp_avg_sq, i),
            .exp_avg_sq_absmax = element(op, "exp_avg_sq_absmax", exp_avg_sq_absmax, i),
            .master = nullptr,
        };
        if (masters.empty() || masters[i].numel() == 0)
            continue;
        floats[i] = element(op, "masters", masters, i);
        all[i].master = &floats[i];
    }
    const View values1 = vector_of(op, "codebook1", codebook1, Shape{256});
    const View values2 = vector_of(op, "codebook2", codebook2, Shape{256});
    lowbit_adam8bit_step_args args = {
        .params = all.data(),
        .count = all.size(),
        .codebook1 = &values1.tensor,
        .codebook2 = &values2.tensor,
        .step = 1,
        .lr = 0,
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .weight_decay = weight_decay,
        .decoupled = decoupled,
        .maximize = maximize,
        .blocksize = static_cast<size_t>(blocksize),
        .grad_scale = 1,
        .found_inf = 0,
    };
    const lowbit_executor threads = op.executor();
    const Number step_number(op, "step", step), lr_number(op, "lr", lr);
    const std::optional<Number> scale = float_of(op, "grad_scale", grad_scale),
                                inf = float_of(op, "found_inf", found_inf);
#if LOWBIT_CUDA
    if (op.on_cuda()) {
        const lowbit_adam8bit_device_numbers numbers = {
            .step = step_number.on_device(),
            .lr = lr_number.on_device(),
            .grad_scale = scale ? scale->as<float>() : nullptr,
            .found_inf = inf ? inf->as<float>() : nullptr,
        };
        return check(lowbit_adam8bit_step_cuda(&args, &numbers, &threads));
    }
#endif
    args.step = step_number.value();
    args.lr = lr_number.value();
    if (scale)
        args.grad_scale = *scale->as<float>();
    if (inf)
        args.found_inf = *inf->as<float>();
    check(lowbit_adam8bit_step(&args, &threads));
}

} // namespace lowbit

LOWBIT_REGISTER(adam8bit_step_)
