// SPDX-License-Identifier: MIT
// From torch's tensors, threads and memory to lowbit's, through LibTorch's stable ABI alone.
#ifndef LOWBIT_SHIM_TENSOR_BRIDGE_H
#define LOWBIT_SHIM_TENSOR_BRIDGE_H

#include <lowbit/lowbit.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <dlfcn.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lowbit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalType = std::optional<ScalarType>;
using Shape = std::vector<int64_t>;

// The operator that runs, and where: on the device of its first tensor. On a GPU that one becomes
// the current device as long as this object lives.
class Op {
  public:
    Op(const char *name, const Tensor &first) : name_(name), on_cuda_(first.is_cuda()) {
        if (on_cuda_) {
            index_ = first.get_device_index();
            guard_.emplace(index_);
        }
    }
    const char *name() const { return name_; }
    bool on_cuda() const { return on_cuda_; }
    bool holds(const Tensor &tensor) const {
        return on_cuda_ ? tensor.is_cuda() && tensor.get_device_index() == index_ : tensor.is_cpu();
    }
    lowbit_executor executor() const { return on_cuda_ ? gpu() : threads(); }

  private:
    // Torch's own threads. Inside another parallel region torch runs all tasks on the calling
    // thread.
    static lowbit_executor threads() {
        const auto parallel_for = [](void *, size_t tasks, lowbit_task task, void *arg) {
            torch::stable::parallel_for(0, static_cast<int64_t>(tasks), 1,
                                        [&](int64_t begin, int64_t end) {
                                            for (int64_t i = begin; i < end; i++)
                                                task(arg, static_cast<size_t>(i));
                                        });
        };
        return {parallel_for, torch::stable::get_num_threads(), nullptr, false, nullptr};
    }
    // The current stream. libtorch_cuda is not linked: this library loads where there is none.
    lowbit_executor gpu() const {
        using GetStream = AOTITorchError (*)(int32_t, void **);
        static const auto get_stream = [] {
            void *library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
            return reinterpret_cast<GetStream>(
                library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
        }();
        void *stream = nullptr;
        if (!get_stream || get_stream(index_, &stream) != AOTI_TORCH_SUCCESS)
            throw std::runtime_error(std::string("lowbit::") + name_ +
                                     ": torch does not tell its current CUDA stream");
        return {nullptr, 0, nullptr, true, stream};
    }

    const char *name_;
    bool on_cuda_;
    int32_t index_ = 0;
    std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// An error that names the operator, the argument, what was given and the rule.
template <class... Given>
[[noreturn]] void refuse(const Op &op, const char *name, const Given &...rest) {
    std::ostringstream text;
    text << "lowbit::" << op.name() << ": " << name;
    (text << ... << rest);
    throw std::runtime_error(text.str()); // torch makes it a RuntimeError
}

inline std::string to_string(const Shape &shape) {
    std::ostringstream text;
    const char *separator = "[";
    for (int64_t size : shape) {
        text << separator << size;
        separator = ", ";
    }
    text << (shape.empty() ? "[]" : "]");
    return text.str();
}

inline Shape shape_of(const Tensor &tensor) {
    const auto sizes = tensor.sizes();
    return Shape(sizes.begin(), sizes.end());
}

// As Python writes it.
inline const char *to_string(ScalarType type) {
    switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: // BFloat16, ComplexFloat, Float8_e4m3fn, ...: close enough to be recognized
        return torch::headeronly::toString(type);
    }
}

inline lowbit_dtype dtype_of(const Op &op, const char *name, ScalarType type) {
    switch (type) {
    case ScalarType::Float: return LOWBIT_FLOAT32;
    case ScalarType::Half: return LOWBIT_FLOAT16;
    case ScalarType::BFloat16: return LOWBIT_BFLOAT16;
    case ScalarType::Char: return LOWBIT_INT8;
    case ScalarType::Int: return LOWBIT_INT32;
    case ScalarType::Byte: return LOWBIT_UINT8;
    default:
        refuse(op, name, " has dtype ", to_string(type),
               ", which is none that lowbit knows: float32, float16, bfloat16, int8, int32 and "
               "uint8");
    }
}

// The float dtype of a result. Left to the C library, a wrong one would be blamed on the result,
// which the caller did not pass.
inline ScalarType float_type(const Op &op, const char *name, OptionalType given,
                             ScalarType otherwise) {
    if (!given)
        return otherwise;
    if (*given != ScalarType::Float && *given != ScalarType::Half && *given != ScalarType::BFloat16)
        refuse(op, name, " is ", to_string(*given), ", expected float32, float16 or bfloat16");
    return *given;
}

// A threshold as fp32. One that underflows would become 0, which means that there is none.
inline float threshold_of(const Op &op, double given) {
    const float threshold = static_cast<float>(given);
    if (given != 0 && threshold == 0)
        refuse(op, "threshold", " is ", given, ", expected 0 or a number that float32 can hold");
    return threshold;
}

// A tensor as lowbit sees it, with what keeps its memory alive.
struct View {
    Tensor owner;
    lowbit_tensor tensor;
};

inline View make_view(const Op &op, const char *name, const Tensor &tensor, void *data, size_t rows,
                      size_t cols, size_t stride) {
    return {tensor, {data, dtype_of(op, name, tensor.scalar_type()), rows, cols, stride}};
}

// For operators that write into their arguments: autograd would not notice.
inline void check_no_grad(const Op &op) {
    if (aoti_torch_grad_mode_is_enabled())
        throw std::runtime_error(std::string("lowbit::") + op.name() +
                                 ": works in place and has no gradient, expected a call under "
                                 "torch.no_grad()");
}

inline void check_device(const Op &op, const char *name, const Tensor &tensor) {
    if (!op.holds(tensor))
        refuse(op, name, " is on another device than ", op.on_cuda() ? "that GPU" : "the CPU",
               ", expected all tensors on one device");
}

// The distance between rows of [..., K] when the leading dimensions are evenly spaced, else -1.
inline int64_t row_stride(const Tensor &tensor) {
    const int64_t dims = tensor.dim(), k = tensor.size(dims - 1);
    if (k > 1 && tensor.stride(dims - 1) != 1)
        return -1;
    int64_t stride = -1, next = -1; // next: the stride that the next dimension must have
    for (int64_t i = dims - 2; i >= 0; i--) {
        if (tensor.size(i) == 1)
            continue;
        if (stride < 0)
            stride = tensor.stride(i);
        else if (tensor.stride(i) != next)
            return -1;
        next = tensor.stride(i) * tensor.size(i);
    }
    return stride < 0 ? k : stride < k ? -1 : stride;
}

// An input [..., K] as [rows, K]: in place when its rows are evenly spaced, as a copy otherwise.
inline View rows_of(const Op &op, const char *name, const Tensor &given) {
    check_device(op, name, given);
    if (given.dim() == 0)
        refuse(op, name, " has shape [], expected at least one dimension");
    const bool in_place = given.numel() == 0 || row_stride(given) >= 0;
    const Tensor tensor = in_place ? given : torch::stable::contiguous(given);
    const size_t k = static_cast<size_t>(tensor.size(tensor.dim() - 1));
    size_t rows = 1;
    for (int64_t i = 0; i + 1 < tensor.dim(); i++)
        rows *= static_cast<size_t>(tensor.size(i));
    const size_t stride = tensor.numel() == 0 ? k : static_cast<size_t>(row_stride(tensor));
    return make_view(op, name, tensor, const_cast<void *>(tensor.const_data_ptr()), rows, k,
                     stride);
}

// A contiguous weight [N, K]. Never a copy: it would double the memory that int8 saves.
inline View weight_of(const Op &op, const char *name, const Tensor &tensor) {
    check_device(op, name, tensor);
    if (tensor.dim() != 2)
        refuse(op, name, " has shape ", to_string(shape_of(tensor)), ", expected 2 dimensions");
    if (!tensor.is_contiguous())
        refuse(op, name, " is not contiguous, expected contiguous rows");
    const size_t k = static_cast<size_t>(tensor.size(1));
    return make_view(op, name, tensor, const_cast<void *>(tensor.const_data_ptr()),
                     static_cast<size_t>(tensor.size(0)), k, k);
}

inline void check_shape(const Op &op, const char *name, const Tensor &tensor, const Shape &shape) {
    if (shape_of(tensor) != shape)
        refuse(op, name, " has shape ", to_string(shape_of(tensor)), ", expected ",
               to_string(shape));
}

// A contiguous input of the given shape, as a vector.
inline View vector_of(const Op &op, const char *name, const Tensor &tensor, const Shape &shape) {
    check_device(op, name, tensor);
    check_shape(op, name, tensor, shape);
    if (!tensor.is_contiguous())
        refuse(op, name, " is not contiguous");
    return make_view(op, name, tensor, const_cast<void *>(tensor.const_data_ptr()),
                     static_cast<size_t>(tensor.numel()), 1, 1);
}

inline std::optional<View> vector_of(const Op &op, const char *name, const OptionalTensor &tensor,
                                     const Shape &shape) {
    if (!tensor)
        return std::nullopt;
    return vector_of(op, name, *tensor, shape);
}

// A contiguous input of any shape, as a vector of its elements. Never a copy.
inline View flat_of(const Op &op, const char *name, const Tensor &tensor) {
    check_device(op, name, tensor);
    if (!tensor.is_contiguous())
        refuse(op, name, " is not contiguous");
    return make_view(op, name, tensor, const_cast<void *>(tensor.const_data_ptr()),
                     static_cast<size_t>(tensor.numel()), 1, 1);
}

inline std::optional<View> flat_of(const Op &op, const char *name, const OptionalTensor &tensor) {
    if (!tensor)
        return std::nullopt;
    return flat_of(op, name, *tensor);
}

// An input of any shape and strides, as a vector of its elements in row-major order: in place when
// it is contiguous, as a copy otherwise.
inline View elements_of(const Op &op, const char *name, const Tensor &given) {
    check_device(op, name, given);
    return flat_of(op, name, given.is_contiguous() ? given : torch::stable::contiguous(given));
}

inline void check_blocksize(const Op &op, int64_t blocksize) {
    if (blocksize < 32 || blocksize > 4096 || (blocksize & (blocksize - 1)))
        refuse(op, "blocksize", " is ", blocksize, ", expected a power of two from 32 to 4096");
}

// How many blocks hold a tensor's elements.
inline int64_t block_count(const Op &op, const Tensor &tensor, int64_t blocksize) {
    check_blocksize(op, blocksize);
    return (tensor.numel() + blocksize - 1) / blocksize;
}

inline const lowbit_tensor *pointer(const std::optional<View> &view) {
    return view ? &view->tensor : nullptr;
}

// A new tensor of this shape and dtype, as [rows, cols].
inline View new_rows(const Op &op, const char *name, const Tensor &like, const Shape &shape,
                     ScalarType type) {
    const Tensor tensor = torch::stable::new_empty(like, shape, type);
    const size_t cols = static_cast<size_t>(shape.back());
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); i++)
        rows *= static_cast<size_t>(shape[i]);
    return make_view(op, name, tensor, tensor.mutable_data_ptr(), rows, cols, cols);
}

inline View new_vector(const Op &op, const char *name, const Tensor &like, const Shape &shape,
                       ScalarType type) {
    const Tensor tensor = torch::stable::new_empty(like, shape, type);
    return make_view(op, name, tensor, tensor.mutable_data_ptr(),
                     static_cast<size_t>(tensor.numel()), 1, 1);
}

// [..., K] with another last size.
inline Shape with_last(const Tensor &tensor, int64_t size) {
    Shape shape = shape_of(tensor);
    shape.back() = size;
    return shape;
}

inline Shape without_last(const Tensor &tensor) {
    Shape shape = shape_of(tensor);
    if (!shape.empty())
        shape.pop_back();
    return shape;
}

// Scratch memory from torch's allocator, aligned to 64 bytes.
class Workspace {
  public:
    Workspace(const Tensor &like, size_t size)
        : size_(size), tensor_(torch::stable::new_empty(
                           like, Shape{static_cast<int64_t>(size + 63)}, ScalarType::Byte)) {}
    void *data() const {
        const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
        return reinterpret_cast<void *>((address + 63) / 64 * 64);
    }
    size_t size() const { return size_; }

  private:
    size_t size_;
    Tensor tensor_;
};

// Turns a failed call into an exception. The message already names the operator.
inline void check(lowbit_status status) {
    if (status != LOWBIT_OK)
        throw std::runtime_error(std::string("lowbit::") + lowbit_last_error());
}

// False for a valid call that the library leaves to torch on this device.
inline bool served(lowbit_status status) {
    if (status == LOWBIT_UNSUPPORTED)
        return false;
    check(status);
    return true;
}

} // namespace lowbit

// Registers lowbit::name, one function for all devices that this build serves.
#if LOWBIT_CUDA
#define LOWBIT_REGISTER(name)                                                                      \
    STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {                                                    \
        m.impl(#name, TORCH_BOX(&lowbit::name));                                                   \
    }                                                                                              \
    STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {                                                   \
        m.impl(#name, TORCH_BOX(&lowbit::name));                                                   \
    }
#else
#define LOWBIT_REGISTER(name)                                                                      \
    STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {                                                    \
        m.impl(#name, TORCH_BOX(&lowbit::name));                                                   \
    }
#endif

#endif
