// SPDX-License-Identifier: MIT
// 8-bit Adam, a tile at a time (../blockwise/tile.cuh), the tiles of all parameters numbered in
// their order. The list of parameters is an argument of the kernel, so that nothing has to be
// copied to the device first. Each block of threads makes the encoders and the constants for
// itself.

#include "launch.h"

#include "../blockwise/encoder.cuh"
#include "../blockwise/tile.cuh"

#include <floats.cuh>
#include <grid.cuh>

namespace {

constexpr unsigned VECTOR = 4; // elements, of whatever type
constexpr unsigned BLOCKS_PER_MULTIPROCESSOR = 2;
constexpr unsigned PARAMS = 400; // in one launch

struct Param : lowbit_adam8bit_cuda_param {
    uint32_t end; // the number of the first tile behind it
    bool vectors; // every pointer is aligned to them
};

struct Step : lowbit_adam8bit_cuda_args {
    unsigned log2_blocksize;
    unsigned params;
    Param param[PARAMS];
};
static_assert(sizeof(Step) <= 32764, "arguments of a kernel, since CUDA 12.1");

// What does not depend on the element, with the names of ops/include/lowbit/adam8bit_step.h.
struct Rule {
    float b1, r1, b2, r2, size, e, l2, keep, floor, scale;
};

// By repeated squaring.
__device__ double power(double base, uint64_t exponent) {
    double product = 1;
    for (; exponent; exponent /= 2) {
        if (exponent % 2)
            product *= base;
        base *= base;
    }
    return product;
}

__device__ double number(const void *p, lowbit_number type) {
    return type == LOWBIT_NUMBER_FLOAT32   ? (double)*static_cast<const float *>(p)
           : type == LOWBIT_NUMBER_FLOAT64 ? *static_cast<const double *>(p)
                                           : (double)*static_cast<const int64_t *>(p);
}

__device__ void make_rule(const Step &s, Rule &rule) {
    const double lr = number(s.lr, s.lr_type), step = number(s.step, s.step_type);
    const uint64_t exponent = step >= 1 && step <= 0x1p53 ? (uint64_t)step : 1;
    const double c1 = 1 - power(s.beta1, exponent), c2 = 1 - power(s.beta2, exponent);
    const double beta1_squared = s.beta1 * s.beta1;
    const float scale = s.grad_scale ? __fdiv_rn(1, *s.grad_scale) : 1;
    rule.b1 = (float)s.beta1;
    rule.r1 = (float)(1 - s.beta1);
    rule.b2 = (float)s.beta2;
    rule.r2 = (float)(1 - s.beta2);
    rule.size = (float)(lr * sqrt(c2) / c1);
    rule.e = fmaxf((float)(s.eps * sqrt(c2)), 0x1p-126f);
    rule.l2 = s.decoupled ? 0 : (float)s.weight_decay;
    rule.keep = s.decoupled ? (float)(1 - lr * s.weight_decay) : 1;
    rule.floor = 0;
    if (beta1_squared < s.beta2)
        rule.floor = (float)(sqrt((1 - s.beta2) * (1 - beta1_squared / s.beta2)) / (1 - s.beta1));
    rule.scale = s.maximize ? -scale : scale;
}

// Steps one element: p, and its moments m and v, which are the old ones before. False if it stays.
__device__ __forceinline__ bool step_element(const Rule &rule, float grad, float &p, float &m,
                                             float &v) {
    const float m_old = m, v_old = v;
    const float g = __fmaf_rn(rule.l2, p, __fmul_rn(grad, rule.scale));
    m = __fmaf_rn(rule.b1, m_old, __fmul_rn(rule.r1, g));
    v = __fmaf_rn(rule.b2, v_old, __fmul_rn(rule.r2, __fmul_rn(g, g)));
    if (!(fabsf(m) < INFINITY && v >= 0 && v < INFINITY)) {
        m = finite(m_old);
        v = v_old > 0 ? finite(v_old) : 0;
        return false;
    }
    const float root = __fsqrt_rn(v), least = __fmul_rn(fabsf(m), rule.floor);
    const float d = __fadd_rn(root > least ? root : least, rule.e);
    p = __fmaf_rn(-rule.size, __fdiv_rn(m, d), __fmul_rn(p, rule.keep));
    return true;
}

// Up to VECTOR neighbours of an array: `whole` if they are that many and can be read and written
// together.
template <bool is_whole> struct Span {
    static constexpr bool whole = is_whole;
    size_t tile; // the same in all threads
    unsigned first, count;
};

template <lowbit_float type, class Span>
__device__ __forceinline__ void load(const Span &span, float (&values)[VECTOR], const void *array) {
    const auto *from =
        static_cast<const typename Float<type>::Bits *>(array) + span.tile + span.first;
    if constexpr (Span::whole)
        lb_load<type>(values, from);
    else
        for (unsigned k = 0; k < VECTOR; k++)
            values[k] = k < span.count ? Float<type>::load(from[k]) : 0;
}
template <class Span>
__device__ __forceinline__ lb_pack<uint8_t, VECTOR> load(const Span &span, const uint8_t *array) {
    array += span.tile;
    if constexpr (Span::whole)
        return lb_read<uint8_t, VECTOR>(array + span.first);
    lb_pack<uint8_t, VECTOR> codes;
    for (unsigned k = 0; k < VECTOR; k++)
        if (k < span.count)
            codes.set(k, array[span.first + k]);
    return codes;
}

// Stores the values whose bit is set in `which`.
template <lowbit_float type, class Span>
__device__ __forceinline__ void store(const Span &span, const float (&values)[VECTOR],
                                      unsigned which, void *array) {
    auto *to = static_cast<typename Float<type>::Bits *>(array) + span.tile + span.first;
    if (Span::whole && which == (1u << VECTOR) - 1)
        return lb_store<type>(to, values);
    for (unsigned k = 0; k < VECTOR; k++)
        if (which >> k & 1)
            to[k] = Float<type>::store(values[k]);
}
template <class Span>
__device__ __forceinline__ void store(const Span &span, const lb_pack<uint8_t, VECTOR> &codes,
                                      uint8_t *array) {
    array += span.tile;
    if constexpr (Span::whole)
        lb_write(array + span.first, codes);
    else
        for (unsigned k = 0; k < VECTOR; k++)
            if (k < span.count)
                array[span.first + k] = codes.get(k);
}

struct Shared {
    Encoder<true> encoder1;
    Encoder<false> encoder2;
    uint32_t largest[3][2][TILE_BLOCKS]; // of m and v; they take turns: tile.cuh
    Rule rule;
};

// The tile of a parameter that begins with this element. Contains one barrier.
template <lowbit_float param, lowbit_float grad>
__device__ __forceinline__ void step_tile(const Param &p, size_t first, unsigned log2_blocksize,
                                          Shared &shared, bool direct1, bool direct2,
                                          uint32_t (&largest)[2][TILE_BLOCKS]) {
    const Rule rule = shared.rule;
    const unsigned n = (unsigned)min(p.n - first, (size_t)TILE);
    float *absmax1 = p.exp_avg_absmax + (first >> log2_blocksize);
    float *absmax2 = p.exp_avg_sq_absmax + (first >> log2_blocksize);
    constexpr unsigned steps = PER_THREAD / VECTOR;
    float m[steps][VECTOR] = {}, v[steps][VECTOR] = {};
    const auto with_span = [&](unsigned i, auto use) { // one branch for all arrays
        const unsigned count = min(n - i, (unsigned)VECTOR);
        if (p.vectors && count == VECTOR)
            use(Span<true>{first, i, count});
        else
            use(Span<false>{first, i, count});
    };
#pragma unroll
    for (unsigned step = 0; step < steps; step++) {
        const unsigned i = first_of_step<VECTOR>(step), block = i >> log2_blocksize;
        if (i >= n)
            break;
        float values[VECTOR], grads[VECTOR];
        lb_pack<uint8_t, VECTOR> codes1, codes2;
        with_span(i, [&](auto here) {
            p.master ? load<f32>(here, values, p.master) : load<param>(here, values, p.param);
            load<grad>(here, grads, p.grad);
            codes1 = load(here, p.exp_avg);
            codes2 = load(here, p.exp_avg_sq);
        });
        const float scale1 = absmax1[block], scale2 = absmax2[block];
        unsigned stepped = 0;
        for (unsigned k = 0; k < VECTOR; k++) {
            m[step][k] = __fmul_rn(shared.encoder1.value[codes1.get(k)], scale1);
            v[step][k] = __fmul_rn(shared.encoder2.value[codes2.get(k)], scale2);
            stepped |= (unsigned)step_element(rule, grads[k], values[k], m[step][k], v[step][k])
                       << k;
        }
        if (n - i < VECTOR) {
            stepped &= (1u << (n - i)) - 1;
            for (unsigned k = 0; k < VECTOR; k++)
                if (k >= n - i)
                    m[step][k] = v[step][k] = 0;
        }
        with_span(i, [&](auto here) {
            store<param>(here, values, stepped, p.param);
            if (p.master)
                store<f32>(here, values, stepped, p.master);
        });
    }
    note_largest(m, log2_blocksize, largest[0]);
    note_largest(v, log2_blocksize, largest[1]);
    __syncthreads();
    float inverse1 = 0, inverse2 = 0;
#pragma unroll
    for (unsigned step = 0; step < steps; step++) {
        const unsigned i = first_of_step<VECTOR>(step), block = i >> log2_blocksize;
        if (i >= n)
            break;
        if (step == 0 || !one_block(log2_blocksize)) {
            inverse1 = inverse(__uint_as_float(largest[0][block]));
            inverse2 = inverse(__uint_as_float(largest[1][block]));
        }
        const auto codes1 = encode(shared.encoder1, direct1, m[step], inverse1);
        const auto codes2 = encode(shared.encoder2, direct2, v[step], inverse2);
        with_span(i, [&](auto here) {
            store(here, codes1, p.exp_avg);
            store(here, codes2, p.exp_avg_sq);
        });
    }
    if (threadIdx.x << log2_blocksize < n) {
        absmax1[threadIdx.x] = __uint_as_float(largest[0][threadIdx.x]);
        absmax2[threadIdx.x] = __uint_as_float(largest[1][threadIdx.x]);
    }
}

// The number of the parameter that a tile belongs to, not below `low`: mostly that of the block's tile
// before.
__device__ __forceinline__ unsigned param_of(const Step &s, uint32_t tile, unsigned low) {
    if (tile < s.param[low].end)
        return low;
    unsigned high = s.params - 1;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (tile < s.param[middle].end)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    step_kernel(const __grid_constant__ Step s) {
    LB_SHARED(shared, Shared);
    if (s.found_inf && __float_as_uint(*s.found_inf) << 1)
        return;
    if (threadIdx.x == 0)
        make_rule(s, shared.rule);
    if (threadIdx.x < TILE_BLOCKS)
        shared.largest[0][0][threadIdx.x] = shared.largest[0][1][threadIdx.x] = 0;
    const bool direct1 = lb_encoder_init(shared.encoder1, s.codebook1);
    const bool direct2 = lb_encoder_init(shared.encoder2, s.codebook2);
    const uint32_t tiles = s.param[s.params - 1].end;
    unsigned turn = 0, i = 0;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const unsigned next = turn < 2 ? turn + 1 : 0;
        if (threadIdx.x < TILE_BLOCKS)
            shared.largest[next][0][threadIdx.x] = shared.largest[next][1][threadIdx.x] = 0;
        i = param_of(s, tile, i);
        const Param &p = s.param[i];
        const size_t first = (size_t)(tile - (i ? s.param[i - 1].end : 0)) * TILE;
        // Types at run time within step_tile would cost registers.
        switch (3 * p.param_type + p.grad_type) {
#define CASE(param, grad)                                                                          \
    case 3 * param + grad:                                                                         \
        step_tile<param, grad>(p, first, s.log2_blocksize, shared, direct1, direct2,               \
                               shared.largest[turn]);                                              \
        break
            CASE(f32, f32);
            CASE(f32, f16);
            CASE(f32, bf16);
            CASE(f16, f32);
            CASE(f16, f16);
            CASE(f16, bf16);
            CASE(bf16, f32);
            CASE(bf16, f16);
            CASE(bf16, bf16);
#undef CASE
        }
        turn = next;
    }
}

bool aligned(const lowbit_adam8bit_cuda_param &p) {
    const auto off = [](const void *pointer, size_t element) {
        return (uintptr_t)pointer % (VECTOR * element) != 0;
    };
    return !(off(p.param, lowbit_float_size(p.param_type)) ||
             off(p.grad, lowbit_float_size(p.grad_type)) || off(p.master, 4) || off(p.exp_avg, 1) ||
             off(p.exp_avg_sq, 1));
}

} // namespace

int lowbit_adam8bit_step_launch(const struct lowbit_adam8bit_cuda_args *args,
                                const struct lowbit_adam8bit_cuda_param *params, size_t count,
                                void *stream) {
    Step s;
    static_cast<lowbit_adam8bit_cuda_args &>(s) = *args;
    s.log2_blocksize = log2_of(args->blocksize);
    for (size_t i = 0; i < count;) {
        size_t tiles = 0;
        for (s.params = 0; s.params < PARAMS && i < count; i++) {
            const size_t end = tiles + (params[i].n + TILE - 1) / TILE;
            if (end > INT32_MAX) // more than the kernel counts
                break;
            tiles = end;
            if (params[i].n > 0)
                s.param[s.params++] = {params[i], (uint32_t)tiles, aligned(params[i])};
        }
        if (s.params == 0)
            return i < count ? cudaErrorInvalidValue : cudaSuccess;
        unsigned blocks;
        cudaError_t error = lb_grid(tiles, BLOCKS_PER_MULTIPROCESSOR, &blocks);
        if (error == cudaSuccess)
            error = lb_launch(step_kernel, blocks, THREADS, 0, (cudaStream_t)stream, s);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}
