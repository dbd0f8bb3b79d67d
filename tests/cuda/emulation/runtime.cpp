// SPDX-License-Identifier: MIT
// The functions of the CUDA runtime that launchers and tests call. There is one device; a stream
// runs what it is given at once.

#include "memory.h"

#include <cstring>

namespace emu {

void clear_reports();
void clear_counters();

void reset() {
    clear_reports();
    clear_counters();
    last_error = cudaSuccess;
}

} // namespace emu

using emu::last_error;

static cudaError_t failed(cudaError_t error) {
    return last_error = error;
}

static emu::Watched *device(const void *data, size_t size) {
    return emu::find_global(data, size);
}

static void mark_written(void *data, size_t size) {
    if (emu::Watched *buffer = device(data, size))
        buffer->set_state(static_cast<char *>(data) - buffer->data(), size,
                          emu::Watched::initialized);
}

extern "C" {

cudaError_t cudaMalloc(void **data, size_t size) {
    *data = size ? emu::allocate(size) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaFree(void *data) {
    return !data || emu::release(data) ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (size && ((to_device && !device(to, size)) || (from_device && !device(from, size))))
        return failed(cudaErrorInvalidValue);
    if (size)
        std::memcpy(to, from, size);
    mark_written(to, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void *data, int value, size_t size, cudaStream_t) {
    if (size && !device(data, size))
        return failed(cudaErrorInvalidValue);
    std::memset(data, value, size);
    mark_written(data, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *data, int value, size_t size) {
    return cudaMemsetAsync(data, value, size, nullptr);
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (attribute != cudaDevAttrMultiProcessorCount || device != 0)
        return failed(cudaErrorInvalidValue);
    *value = emu::settings.multiprocessors;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}
cudaError_t cudaDeviceSynchronize() {
    return last_error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return last_error;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchTimeout: return "the launch timed out and was terminated";
    default: return "unspecified launch failure";
    }
}
}
