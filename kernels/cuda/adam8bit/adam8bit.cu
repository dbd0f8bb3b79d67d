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
#include <plain.cuh>
#include <ptx.cuh>

namespace {

constexpr unsigned BLOCKS_PER_MULTIPROCESSOR = 2;
constexpr unsigned PARAMS = 400; // in one launch

struct Param : lowbit_adam8bit_cuda_param {
    uint32_t end; // the number of the first tile behind it
    int kind;     // of Vectors for its whole tiles; -1 if not all are aligned
};

constexpr __host__ __device__ int kind_of(bool has_master, lowbit_float param, lowbit_float grad) {
    return (has_master * 3 + param) * 3 + grad;
}

struct Step : lowbit_adam8bit_cuda_args {
    unsigned log2_blocksize;
    unsigned params;
    Param param[PARAMS];
};
static_assert(sizeof(Step) <= 32764, "arguments of a kernel, since CUDA 12.1");

// What does not depend on the element, with the names of ops/include/lowbit/adam8bit_step.h.
struct Rule {
    float b1, r1, b2, r2, size, e, l2, keep, floor, scale;
    float most_m; // of class Plain
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
    rule.most_m = rule.e <= 0x1p24f ? 0x1p24f : -1;
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

// The same without branches, of elements all of which are in a range where that is known to
// suffice.
class Plain {
  public:
    __device__ __forceinline__ void step(const Rule &rule, float grad, float &p, float &m,
                                         float &v) {
        const float g = __fmaf_rn(rule.l2, p, __fmul_rn(grad, rule.scale));
        m = __fmaf_rn(rule.b1, m, __fmul_rn(rule.r1, g));
        v = __fmaf_rn(rule.b2, v, __fmul_rn(rule.r2, __fmul_rn(g, g)));
        const float root = lb_plain_root(v, ptx::rsqrt(v)), least = __fmul_rn(fabsf(m), rule.floor);
        const float d = __fadd_rn(fmaxf(root, least), rule.e); // the root of 0 is NaN here
        p = __fmaf_rn(-rule.size, lb_plain_quotient(m, d, ptx::rcp(d)), __fmul_rn(p, rule.keep));
        most_m_ = fmaxf(most_m_, fabsf(m));
        least_m_ = min(least_m_, (__float_as_uint(m) << 1) - 1);
        most_v_ = max(most_v_, __float_as_uint(v));
        least_v_ = min(least_v_, __float_as_uint(v) - 1);
        nothing_ = __fmaf_rn(p, 0.0f, nothing_);
    }
    // Whether the steps so far were right: no p is infinite or NaN, each v is 0 or of 2^-101 to
    // 2^48, and each m is 0 or of 2^-100 to 2^24 in magnitude. Since e is at most 2^24, or most_m
    // negative, and floor at most 1, d is at most 2^25 then and no quotient subnormal; one that
    // overflows makes p NaN.
    __device__ __forceinline__ bool right(const Rule &rule) const {
        return nothing_ == 0 && most_m_ <= rule.most_m &&
               least_m_ >= (__float_as_uint(0x1p-100f) << 1) - 1 &&
               most_v_ <= __float_as_uint(0x1p48f) && least_v_ >= __float_as_uint(0x1p-101f) - 1;
    }

    __device__ __forceinline__ float most_m() const { return most_m_; }
    __device__ __forceinline__ float most_v() const { return __uint_as_float(most_v_); }

  private:
    float most_m_ = 0, nothing_ = 0; // or NaN
    uint32_t most_v_ = 0;
    uint32_t least_m_ = ~0u, least_v_ = ~0u; // less 1, so that zeros are the greatest
};

// How a tile is read and written: V neighbours at a time, the first one `at`, or one of any type.
template <bool master, lowbit_float param, lowbit_float grad> struct Vectors {
    static constexpr lowbit_float from = master ? f32 : param;
    static constexpr int V = from == f32 || grad == f32 ? 4 : 8; // no more than 16 bytes
    struct Packed {
        lb_pack<lb_bits<param>, V> rounded;
        lb_pack<lb_bits<from>, V> exact; // for the master
    };
    static __device__ bool has_master(const Param &) { return master; }
    static __device__ lowbit_float param_type(const Param &) { return param; }
    static __device__ lowbit_float grad_type(const Param &) { return grad; }
    static __device__ __forceinline__ void load(const Param &p, size_t at, float (&values)[V],
                                                float (&grads)[V]) {
        const void *const array = master ? p.master : p.param;
        lb_load<from>(values, static_cast<const lb_bits<from> *>(array) + at);
        lb_load<grad>(grads, static_cast<const lb_bits<grad> *>(p.grad) + at);
    }
    static __device__ __forceinline__ Packed pack(const float (&values)[V]) { // none is NaN
        return {lb_pack_numbers<param>(values), lb_pack_numbers<from>(values)};
    }
    static __device__ __forceinline__ void store(const Param &p, size_t at, const Packed &packed) {
        lb_write(static_cast<lb_bits<param> *>(p.param) + at, packed.rounded);
        if constexpr (master)
            lb_write(reinterpret_cast<lb_bits<from> *>(p.master) + at, packed.exact);
    }
};
struct Elements {
    static constexpr int V = 1;
    static __device__ bool has_master(const Param &p) { return p.master; }
    static __device__ lowbit_float param_type(const Param &p) { return p.param_type; }
    static __device__ lowbit_float grad_type(const Param &p) { return p.grad_type; }
};

struct Shared {
    Encoder<true> encoder1;
    Encoder<false> encoder2;
    uint32_t largest[3][2][TILE_BLOCKS]; // of m and v; they take turns: tile.cuh
    Rule rule;
};

// Steps element `at`, and leaves its moments in m and v.
template <class Access>
__device__ __forceinline__ void step_at(const Param &p, size_t at, const Shared &shared,
                                        float scale1, float scale2, float &m, float &v) {
    const lowbit_float type = Access::param_type(p);
    float value = Access::has_master(p) ? p.master[at] : lb_load_any(type, p.param, at);
    m = __fmul_rn(shared.encoder1.value[p.exp_avg[at]], scale1);
    v = __fmul_rn(shared.encoder2.value[p.exp_avg_sq[at]], scale2);
    if (!step_element(shared.rule, lb_load_any(Access::grad_type(p), p.grad, at), value, m, v))
        return;
    lb_store_any(type, p.param, at, value);
    if (Access::has_master(p))
        lb_store_any(f32, p.master, at, value);
}

// The same of vector `at`, with the largest magnitudes, if class Plain can. Otherwise changes
// nothing in memory and returns false.
template <class Access, int V>
__device__ __forceinline__ bool
step_plain(const Param &p, size_t at, const Shared &shared, const Rule &rule, float scale1,
           float scale2, float (&m)[V], float (&v)[V], float &most_m, float &most_v) {
    float values[V], grads[V];
    Access::load(p, at, values, grads);
    const auto codes1 = lb_read<uint8_t, V>(p.exp_avg + at);
    const auto codes2 = lb_read<uint8_t, V>(p.exp_avg_sq + at);
    Plain plain;
    for (int k = 0; k < V; k++) {
        m[k] = __fmul_rn(shared.encoder1.value[__byte_perm(codes1.word[k / 4], 0, 0x4440 + k % 4)],
                         scale1);
        v[k] = __fmul_rn(shared.encoder2.value[__byte_perm(codes2.word[k / 4], 0, 0x4440 + k % 4)],
                         scale2);
        plain.step(rule, grads[k], values[k], m[k], v[k]);
    }
    most_m = plain.most_m();
    most_v = plain.most_v();
    const auto packed = Access::pack(values);
    if (!plain.right(rule))
        return false;
    Access::store(p, at, packed);
    return true;
}

// The tile of a parameter that begins with this element: a whole one, unless V = 1. Contains one
// barrier.
template <class Access>
__device__ __forceinline__ void step_tile(const Param &p, size_t first, unsigned log2_blocksize,
                                          Shared &shared, bool direct1, bool direct2,
                                          uint32_t (&largest)[2][TILE_BLOCKS]) {
    constexpr int V = Access::V, steps = PER_THREAD / V;
    const Rule rule = shared.rule;
    const unsigned n = V > 1 ? TILE : (unsigned)min(p.n - first, (size_t)TILE);
    float *absmax1 = p.exp_avg_absmax + (first >> log2_blocksize);
    float *absmax2 = p.exp_avg_sq_absmax + (first >> log2_blocksize);
    float m[steps][V] = {}, v[steps][V] = {}, most1[steps] = {}, most2[steps] = {};
    unsigned others = 0; // the steps that step_plain cannot make
#pragma unroll
    for (unsigned step = 0; step < steps; step++) {
        const unsigned i = first_of_step<V>(step), block = i >> log2_blocksize;
        if (V == 1 && i >= n)
            break;
        if constexpr (V > 1)
            if (step_plain<Access>(p, first + i, shared, rule, absmax1[block], absmax2[block],
                                   m[step], v[step], most1[step], most2[step]))
                continue;
        others |= 1u << step;
    }
    if (others)
#pragma unroll 1
        for (unsigned j = 0; j < PER_THREAD; j++) {
            const unsigned i = first_of_step<V>(j / V) + j % V, block = i >> log2_blocksize;
            if (!(others >> j / V & 1))
                continue;
            float m_i, v_i;
            step_at<Access>(p, first + i, shared, absmax1[block], absmax2[block], m_i, v_i);
#pragma unroll
            for (unsigned k = 0; k < PER_THREAD; k++) // m[j] would keep m in memory
                if (k == j) {
                    m[k / V][k % V] = m_i;
                    v[k / V][k % V] = v_i;
                    most1[k / V] = fmaxf(k % V ? most1[k / V] : 0, fabsf(m_i));
                    most2[k / V] = fmaxf(k % V ? most2[k / V] : 0, fabsf(v_i)); // v may be -0
                }
        }
    note_largest<V>(most1, log2_blocksize, largest[0]);
    note_largest<V>(most2, log2_blocksize, largest[1]);
    __syncthreads();
    float inverse1 = 0, inverse2 = 0;
#pragma unroll
    for (unsigned step = 0; step < steps; step++) {
        const unsigned i = first_of_step<V>(step), block = i >> log2_blocksize;
        if (V == 1 && !(others >> step & 1))
            break;
        if (step == 0 || !one_block(log2_blocksize)) {
            inverse1 = inverse(__uint_as_float(largest[0][block]));
            inverse2 = inverse(__uint_as_float(largest[1][block]));
        }
        lb_write(p.exp_avg + first + i, encode(shared.encoder1, direct1, m[step], inverse1));
        lb_write(p.exp_avg_sq + first + i, encode(shared.encoder2, direct2, v[step], inverse2));
    }
    if (threadIdx.x << log2_blocksize < n) {
        absmax1[threadIdx.x] = __uint_as_float(largest[0][threadIdx.x]);
        absmax2[threadIdx.x] = __uint_as_float(largest[1][threadIdx.x]);
    }
}

// The number of the parameter that a tile belongs to, not below `low`: mostly that of the block's
// tile before.
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
    for (uint32_t tile = blockIdx.x; tile < tiles;) {
        i = param_of(s, tile, i);
        const Param &p = s.param[i];
        const uint32_t begin = i ? s.param[i - 1].end : 0, partial = begin + (uint32_t)(p.n / TILE);
        const auto step_until = [&](uint32_t end, auto access) {
            for (; tile < end; tile += gridDim.x) {
                const unsigned next = turn < 2 ? turn + 1 : 0;
                if (threadIdx.x < TILE_BLOCKS)
                    shared.largest[next][0][threadIdx.x] = shared.largest[next][1][threadIdx.x] = 0;
                step_tile<decltype(access)>(p, (size_t)(tile - begin) * TILE, s.log2_blocksize,
                                            shared, direct1, direct2, shared.largest[turn]);
                turn = next;
            }
        };
        // Types at run time within step_tile would cost registers.
        switch (tile < partial ? p.kind : -1) {
#define CASE(has_master, param, grad)                                                              \
    case kind_of(has_master, param, grad):                                                         \
        step_until(partial, Vectors<has_master, param, grad>());                                   \
        break
            CASE(false, f32, f32);
            CASE(false, f32, f16);
            CASE(false, f32, bf16);
            CASE(false, f16, f32);
            CASE(false, f16, f16);
            CASE(false, f16, bf16);
            CASE(false, bf16, f32);
            CASE(false, bf16, f16);
            CASE(false, bf16, bf16);
            CASE(true, f16, f32);
            CASE(true, f16, f16);
            CASE(true, f16, bf16);
            CASE(true, bf16, f32);
            CASE(true, bf16, f16);
            CASE(true, bf16, bf16);
#undef CASE
        default: step_until(p.end, Elements());
        }
    }
}

int kind_if_aligned(const lowbit_adam8bit_cuda_param &p) {
    const size_t longest = max(max(lowbit_float_size(p.param_type), lowbit_float_size(p.grad_type)),
                               p.master ? (size_t)4 : 0);
    const auto off = [longest](const void *pointer, size_t element) {
        return (uintptr_t)pointer % (16 / longest * element) != 0;
    };
    if (off(p.param, lowbit_float_size(p.param_type)) ||
        off(p.grad, lowbit_float_size(p.grad_type)) || off(p.master, 4) || off(p.exp_avg, 1) ||
        off(p.exp_avg_sq, 1))
        return -1;
    return kind_of(p.master, p.param_type, p.grad_type);
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
                s.param[s.params++] = {params[i], (uint32_t)tiles, kind_if_aligned(params[i])};
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
