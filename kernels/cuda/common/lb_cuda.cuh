// SPDX-License-Identifier: MIT
// What every CUDA kernel includes first: the few places where the language itself would tie the
// source to nvcc. tests/cuda/emulation has a file of this name too, which comes first on the
// include path where the kernels are compiled for the CPU; so kernels use these names and not
// __shared__ or <<<>>>, and include this folder's files with angle brackets.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_LB_CUDA_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_LB_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdint.h>

constexpr unsigned LB_WARP = 32, LB_ALL_LANES = 0xffffffffu;

template <typename T> using lb_type = T;

// LB_SHARED(name, type): a variable in shared memory, uninitialised. LB_DYNAMIC_SHARED: the shared
// memory whose size the launch gives, 128-byte aligned; once per kernel.
#define LB_SHARED(name, ...) __shared__ lb_type<__VA_ARGS__> name
#define LB_DYNAMIC_SHARED(name, ...)                                                               \
    extern __shared__ __align__(128) unsigned char lb_dynamic_shared[];                            \
    lb_type<__VA_ARGS__> &name = *reinterpret_cast<lb_type<__VA_ARGS__> *>(lb_dynamic_shared)

// Launches kernel<<<grid, block, shared, stream>>>(args...) and returns how that went. If early,
// the kernel may begin before the last one in the stream is done: it calls ptx::wait_for_last() in
// every thread, before it touches what that one or an earlier one writes.
template <typename... Params, typename... Args>
cudaError_t lb_launch_early(bool early, void (*kernel)(Params...), dim3 grid, dim3 block,
                            size_t shared, cudaStream_t stream, Args... args) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaFuncAttributes code = {};
    cudaError_t error = early || shared ? cudaFuncGetAttributes(&code, kernel) : cudaSuccess;
    // Always all that every GPU has, since another thread may be about to launch the same kernel.
    if (error == cudaSuccess && shared > static_cast<size_t>(code.maxDynamicSharedSizeBytes))
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (99 << 10) - static_cast<int>(code.sharedSizeBytes));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    // If the code that runs here waits: a newer GPU may have compiled that of sm_80.
    config.numAttrs = early && code.ptxVersion >= 90;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <typename... Params, typename... Args>
cudaError_t lb_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                      cudaStream_t stream, Args... args) {
    return lb_launch_early(false, kernel, grid, block, shared, stream, args...);
}

#endif
