// SPDX-License-Identifier: MIT
// The micro-kernels of 8-bit Adam: each equals the reference in bits.

#include "adam8bit_testing.h"
#include "ukernel_testing.h"

#include "../../ops/adam8bit_rule.h"

#if LOWBIT_TEST_EMULATED
extern "C" {
#define LOWBIT_ADAM8BIT(param, grad, isa, ISA)                                                     \
    LOWBIT_DECLARE_##isa(lowbit_adam8bit_ukernel, lowbit_adam8bit_ukernel_##param##_##grad##__##isa)
#include "../../kernels/cpu/adam8bit/adam8bit.inc"
}
#endif

namespace {

struct Row : Variant<lowbit_adam8bit_ukernel> {
    lowbit_float param, grad;
};

std::vector<Row> rows() {
    std::vector<Row> rows;
    std::vector<Variant<lowbit_adam8bit_ukernel>> variants;
#define LOWBIT_ADAM8BIT(param, grad, isa, ISA)                                                     \
    variants.clear();                                                                              \
    add_variants(variants, #param "_" #grad "__" #isa, ISA,                                        \
                 lowbit_adam8bit_ukernel_##param##_##grad##__##isa,                                \
                 LOWBIT_EMULATED_##isa(lowbit_adam8bit_ukernel_##param##_##grad##__##isa));        \
    for (const auto &variant : variants)                                                           \
        rows.push_back({variant, param, grad});
#include "../../kernels/cpu/adam8bit/adam8bit.inc"
    return rows;
}

// A parameter and its state, in buffers of just their size.
struct State {
    Floats param, grad, master;
    Array<uint8_t> exp_avg, exp_avg_sq;
    Array<float> exp_avg_absmax, exp_avg_sq_absmax;
    lowbit_tensor master_view;

    State(const Row &row, size_t n, size_t blocks, GuardedBuffer::Side side)
        : param(row.param, n, side), grad(row.grad, n, side), master(f32, n, side),
          exp_avg(n, side), exp_avg_sq(n, side), exp_avg_absmax(blocks, side),
          exp_avg_sq_absmax(blocks, side), master_view{master.data(), LOWBIT_FLOAT32, n, 1, 1} {}

    void fill_all(Random &random, bool wild) {
        fill(param, random, wild);
        fill(master, random, wild);
        fill(grad, random, wild);
        for (size_t i = 0; i < exp_avg.size(); i++) {
            exp_avg[i] = (uint8_t)random.bits();
            exp_avg_sq[i] = (uint8_t)random.bits();
            if (random.one_in(3)) // far from the others: as good as nothing, or more than all
                grad.set(i, grad.get(i) * (random.one_in(2) ? 1e-3f : 1e-12f));
        }
        fill(exp_avg_absmax, random, wild);
        fill(exp_avg_sq_absmax, random, wild);
        for (size_t i = 0; !wild && i < exp_avg_sq_absmax.size(); i++)
            exp_avg_sq_absmax[i] = std::fabs(exp_avg_sq_absmax[i]);
    }

    void copy(const State &other) {
        std::memcpy(param.data(), other.param.data(), param.bytes().bytes());
        std::memcpy(grad.data(), other.grad.data(), grad.bytes().bytes());
        std::memcpy(master.data(), other.master.data(), master.bytes().bytes());
        std::memcpy(exp_avg.data(), other.exp_avg.data(), exp_avg.bytes());
        std::memcpy(exp_avg_sq.data(), other.exp_avg_sq.data(), exp_avg_sq.bytes());
        std::memcpy(exp_avg_absmax.data(), other.exp_avg_absmax.data(), exp_avg_absmax.bytes());
        std::memcpy(exp_avg_sq_absmax.data(), other.exp_avg_sq_absmax.data(),
                    exp_avg_sq_absmax.bytes());
    }

    template <typename T> static lowbit_tensor view(const T &array, lowbit_dtype dtype) {
        return {array.data(), dtype, array.size(), 1, 1};
    }
    lowbit_adam8bit_param as_param(bool with_master) const {
        return {view(param, (lowbit_dtype)param.type()),
                view(grad, (lowbit_dtype)grad.type()),
                view(exp_avg, LOWBIT_UINT8),
                view(exp_avg_absmax, LOWBIT_FLOAT32),
                view(exp_avg_sq, LOWBIT_UINT8),
                view(exp_avg_sq_absmax, LOWBIT_FLOAT32),
                with_master ? &master_view : nullptr};
    }
    lowbit_adam8bit_part as_part(bool with_master) const {
        return {param.data(),
                grad.data(),
                with_master ? (float *)master.data() : nullptr,
                exp_avg.data(),
                exp_avg_absmax.data(),
                exp_avg_sq.data(),
                exp_avg_sq_absmax.data()};
    }
};

class Adam8bit : public UkernelTest<Row> {
  protected:
    void expect_equals_reference(Random &random, size_t n, bool wild, GuardedBuffer::Side side) {
        const Tensor codebook1 = codebook(codebook_kind(random, dynamic_signed), random);
        const Tensor codebook2 = magnitudes(codebook_kind(random, dynamic_unsigned), random);
        lowbit_adam8bit_step_args args = random_step(random, codebook1, codebook2);
        const bool with_master = random.one_in(2);
        const size_t blocks = (n + args.blocksize - 1) / args.blocksize;
        State want(GetParam(), n, blocks, side), have(GetParam(), n, blocks, side);
        want.fill_all(random, wild);
        have.copy(want);

        const lowbit_adam8bit_param param = want.as_param(with_master);
        args.params = &param;
        args.count = 1;
        reference_adam8bit_step(&args);
        const Array<lowbit_adam8bit_rule> rule(1, side);
        lowbit_adam8bit_rule_init(&args, rule.data());
        const lowbit_adam8bit_part part = have.as_part(with_master);
        GetParam().run(n, args.blocksize, &part, rule.data());

        SCOPED_TRACE("n " + std::to_string(n) + ", blocks of " + std::to_string(args.blocksize) +
                     (with_master ? ", master" : "") + (wild ? ", wild" : ""));
        EXPECT_TRUE(same_bits(want.param.bytes(), have.param.bytes())) << "param";
        EXPECT_TRUE(same_bits(want.master.bytes(), have.master.bytes())) << "master";
        EXPECT_TRUE(same_bits(want.grad.bytes(), have.grad.bytes())) << "grad";
        EXPECT_TRUE(same_bits(want.exp_avg_absmax, have.exp_avg_absmax)) << "exp_avg_absmax";
        EXPECT_TRUE(same_bits(want.exp_avg, have.exp_avg)) << "exp_avg";
        EXPECT_TRUE(same_bits(want.exp_avg_sq_absmax, have.exp_avg_sq_absmax))
            << "exp_avg_sq_absmax";
        EXPECT_TRUE(same_bits(want.exp_avg_sq, have.exp_avg_sq)) << "exp_avg_sq";
    }
};

TEST_P(Adam8bit, EqualsReference) {
    Random random(220);
    for (size_t n : lengths())
        for (bool wild : {false, true}) {
            expect_equals_reference(random, n, wild,
                                    random.one_in(2) ? GuardedBuffer::at_end
                                                     : GuardedBuffer::at_start);
            if (HasFailure())
                return;
        }
}

INSTANTIATE_TEST_SUITE_P(, Adam8bit, testing::ValuesIn(rows()), VariantName());

} // namespace
