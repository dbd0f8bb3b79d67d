// SPDX-License-Identifier: MIT

#include "tensor_bridge.h"

namespace lowbit {

using Tensors = std::vector<Tensor>;

static const char op[] = "adam8bit_step_";

static void check_count(const char *list, const Tensors &tensors, const Tensors &params) {
    if (tensors.size() != params.size())
        refuse(op, list, " holds ", tensors.size(),
               " tensors, expected as many as params: ", params.size());
}

// Tensor i of a list, as a vector of its elements. Its full name is made up only for a message: a
// model has hundreds of parameters.
static lowbit_tensor element(const char *list, const Tensors &tensors, size_t i) {
    try {
        return flat_of(op, list, tensors[i]).tensor;
    } catch (const std::exception &) {
        const std::string name = std::string(list) + "[" + std::to_string(i) + "]";
        return flat_of(op, name.c_str(), tensors[i]).tensor;
    }
}

static void check_like_param(const char *list, const Tensors &tensors, const Tensors &params,
                             size_t i) {
    const auto given = tensors[i].sizes(), expected = params[i].sizes();
    if (given != expected)
        refuse(op, list, "[", i, "] has shape ", to_string(shape_of(tensors[i])), ", expected ",
               to_string(shape_of(params[i])), ", that of params[", i, "]");
}

// The value of a tensor of one element, exactly.
static double number_of(const char *name, const Tensor &tensor) {
    check_on_cpu(op, name, tensor);
    if (tensor.numel() != 1)
        refuse(op, name, " has shape ", to_string(shape_of(tensor)), ", expected one element");
    const void *value = tensor.const_data_ptr();
    switch (tensor.scalar_type()) {
    case ScalarType::Double: return *static_cast<const double *>(value);
    case ScalarType::Float: return *static_cast<const float *>(value);
    case ScalarType::Long: return static_cast<double>(*static_cast<const int64_t *>(value));
    default:
        refuse(op, name, " has dtype ", to_string(tensor.scalar_type()),
               ", expected int64, float32 or float64");
    }
}

static float float_of(const char *name, const OptionalTensor &tensor, float otherwise) {
    if (!tensor)
        return otherwise;
    if (tensor->scalar_type() != ScalarType::Float)
        refuse(op, name, " has dtype ", to_string(tensor->scalar_type()), ", expected float32");
    return static_cast<float>(number_of(name, *tensor));
}

static void adam8bit_step_(Tensors params, Tensors grads, Tensors exp_avg, Tensors exp_avg_absmax,
                           Tensors exp_avg_sq, Tensors exp_avg_sq_absmax, Tensors masters,
                           const Tensor &codebook1, const Tensor &codebook2, const Tensor &step,
                           const Tensor &lr, double beta1, double beta2, double eps,
                           double weight_decay, bool decoupled, bool maximize, int64_t blocksize,
                           OptionalTensor grad_scale, OptionalTensor found_inf) {
    check_no_grad(op);
    check_blocksize(op, blocksize);
    check_count("grads", grads, params);
    check_count("exp_avg", exp_avg, params);
    check_count("exp_avg_absmax", exp_avg_absmax, params);
    check_count("exp_avg_sq", exp_avg_sq, params);
    check_count("exp_avg_sq_absmax", exp_avg_sq_absmax, params);
    if (!masters.empty())
        check_count("masters", masters, params);
    std::vector<lowbit_tensor> floats(masters.size());
    std::vector<lowbit_adam8bit_param> all(params.size());
    for (size_t i = 0; i < all.size(); i++) {
        check_like_param("grads", grads, params, i);
        all[i] = {
            .param = element("params", params, i),
            .grad = element("grads", grads, i),
            .exp_avg = element("exp_avg", exp_avg, i),
            .exp_avg_absmax = element("exp_avg_absmax", exp_avg_absmax, i),
            .exp_avg_sq = element("exp_avg_sq", exp_avg_sq, i),
            .exp_avg_sq_absmax = element("exp_avg_sq_absmax", exp_avg_sq_absmax, i),
            .master = nullptr,
        };
        if (masters.empty() || masters[i].numel() == 0)
            continue;
        floats[i] = element("masters", masters, i);
        all[i].master = &floats[i];
    }
    const View values1 = vector_of(op, "codebook1", codebook1, Shape{256});
    const View values2 = vector_of(op, "codebook2", codebook2, Shape{256});
    const lowbit_adam8bit_step_args args = {
        .params = all.data(),
        .count = all.size(),
        .codebook1 = &values1.tensor,
        .codebook2 = &values2.tensor,
        .step = number_of("step", step),
        .lr = number_of("lr", lr),
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .weight_decay = weight_decay,
        .decoupled = decoupled,
        .maximize = maximize,
        .blocksize = static_cast<size_t>(blocksize),
        .grad_scale = float_of("grad_scale", grad_scale, 1),
        .found_inf = float_of("found_inf", found_inf, 0),
    };
    const lowbit_executor threads = executor();
    check(lowbit_adam8bit_step(&args, &threads));
}

} // namespace lowbit

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
    m.impl("adam8bit_step_", TORCH_BOX(&lowbit::adam8bit_step_));
}
