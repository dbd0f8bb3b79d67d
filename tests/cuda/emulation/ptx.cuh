// SPDX-License-Identifier: MIT
// kernels/cuda/common/ptx.cuh for the CPU: the same functions, whose contracts stand there.
#ifndef LOWBIT_TESTS_CUDA_PTX_CUH
#define LOWBIT_TESTS_CUDA_PTX_CUH

#include <lb_cuda.cuh>

namespace ptx {

LB_EMULATED void cp_async16(void *dst, const void *src, int bytes) {
    emu::cp_async(dst, src, (unsigned)bytes);
}
LB_EMULATED void cp_async_commit() {
    emu::cp_async_commit();
}
template <int n> LB_EMULATED void cp_async_wait() {
    emu::cp_async_wait(n);
}

LB_TOUCHING void lb_ldmatrix(const emu::Operation &operation, uint32_t (&r)[4], const void *row,
                             int line) {
    emu::access(row, 16, emu::Kind::read, LB_SITE);
    emu::Ldmatrix l;
    __builtin_memcpy(l.row, row, 16);
    l.result = r;
    emu::collective(operation, LB_ALL_LANES, &l, line, LB_SITE);
}
LB_EMULATED void ldmatrix_x4(uint32_t (&r)[4], const void *row, int line = __builtin_LINE()) {
    lb_ldmatrix(emu::ldmatrix, r, row, line);
}
LB_EMULATED void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, int line = __builtin_LINE()) {
    lb_ldmatrix(emu::ldmatrix_trans, r, row, line);
}

LB_EMULATED void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 int line = __builtin_LINE()) {
    emu::Mma m = {d, a, b};
    emu::collective(emu::mma_s8, LB_ALL_LANES, &m, line);
}
LB_EMULATED void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  int line = __builtin_LINE()) {
    emu::Mma m = {d, a, b};
    emu::collective(emu::mma_f16, LB_ALL_LANES, &m, line);
}
LB_EMULATED void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   int line = __builtin_LINE()) {
    emu::Mma m = {d, a, b};
    emu::collective(emu::mma_bf16, LB_ALL_LANES, &m, line);
}

// A launch is done when the next begins.
LB_EMULATED void begin_next() {}
LB_EMULATED void wait_for_last() {}

LB_TOUCHING uint4 ldg_nc_v4(const void *p) {
    emu::access(p, sizeof(uint4), emu::Kind::read, LB_SITE);
    return *static_cast<const uint4 *>(p);
}

LB_TOUCHING void st_v4(void *p, uint4 v) {
    emu::access(p, sizeof v, emu::Kind::write, LB_SITE);
    *static_cast<uint4 *>(p) = v;
}

LB_EMULATED LB_UNWATCHED uint2 ldg_nc_v2(const void *p) {
    emu::access(p, sizeof(uint2), emu::Kind::read);
    return *static_cast<const uint2 *>(p);
}

LB_EMULATED float rcp(float x) {
    return 1 / x;
}
LB_EMULATED float rsqrt(float x) {
    return (float)(1 / std::sqrt((double)x));
}

} // namespace ptx

#endif
