// SPDX-License-Identifier: MIT
// The operators of torch.ops.lowbit. Their meaning is in ops/include/lowbit/<operator>.h.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lowbit, m) {
    m.def("adam8bit_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, "
          "Tensor(c!)[] exp_avg_absmax, Tensor(d!)[] exp_avg_sq, Tensor(e!)[] exp_avg_sq_absmax, "
          "Tensor(f!)[] masters, Tensor codebook1, Tensor codebook2, Tensor step, Tensor lr, "
          "float beta1, float beta2, float eps, float weight_decay, bool decoupled, "
          "bool maximize, int blocksize=256, Tensor? grad_scale=None, Tensor? found_inf=None) "
          "-> ()");

    m.def("blockwise_quantize(Tensor x, Tensor codebook, int blocksize=256) "
          "-> (Tensor q, Tensor absmax)");
    m.def("blockwise_dequantize(Tensor q, Tensor absmax, Tensor codebook, ScalarType? dtype=None, "
          "int blocksize=256) -> Tensor");
    m.def("int8_quantize(Tensor x, float threshold=0.0, ScalarType? absmax_dtype=None) "
          "-> (Tensor q, Tensor absmax)");
    m.def("int8_quantize_offset(Tensor weight, ScalarType? absmax_dtype=None) "
          "-> (Tensor q, Tensor absmax, Tensor offset)");
    m.def("int8_requantize_(Tensor(a!) q, Tensor(b!) absmax, Tensor master) -> ()");
    m.def("int8_dequantize(Tensor q, Tensor absmax, Tensor? offset=None, ScalarType? dtype=None) "
          "-> Tensor");
    m.def("int8_matmul(Tensor a, Tensor b) -> Tensor");
    m.def("int8_linear(Tensor x, Tensor weight, Tensor absmax, Tensor? offset=None, "
          "Tensor? bias=None, float threshold=0.0, ScalarType? out_dtype=None) -> Tensor");
    m.def("int8_linear_grad_input(Tensor grad_output, Tensor weight, Tensor absmax, "
          "Tensor? offset=None) -> Tensor");

    m.def("lut4_quantize(Tensor weight, Tensor codebook, int blocksize=64) "
          "-> (Tensor packed, Tensor absmax)");
    m.def("lut4_dequantize(Tensor packed, Tensor absmax, Tensor codebook, SymInt[] shape, "
          "ScalarType? dtype=None, int blocksize=64, Tensor? nested_absmax=None, "
          "Tensor? nested_codebook=None, Tensor? nested_offset=None) -> Tensor");
    m.def("lut4_linear(Tensor x, Tensor packed, Tensor absmax, Tensor codebook, "
          "Tensor? bias=None, int blocksize=64, Tensor? nested_absmax=None, "
          "Tensor? nested_codebook=None, Tensor? nested_offset=None, "
          "ScalarType? out_dtype=None) -> Tensor");
    m.def("lut4_linear_grad_input(Tensor grad_output, Tensor packed, Tensor absmax, "
          "Tensor codebook, SymInt in_features, int blocksize=64, Tensor? nested_absmax=None, "
          "Tensor? nested_codebook=None, Tensor? nested_offset=None) -> Tensor");
}
