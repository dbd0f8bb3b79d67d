// SPDX-License-Identifier: MIT
// What the tests of micro-kernels share: the rows of a table as test parameters, arrays between
// guard pages, values of every float type, and comparison in bits.
//
// A row runs as it is where the machine has its instruction set. Rows for AVX-512 and AMX are also
// compiled for AVX2 (emulation/) and run in that form on every machine that has AVX2.
#ifndef LOWBIT_TESTS_UKERNEL_TESTING_H
#define LOWBIT_TESTS_UKERNEL_TESTING_H

#include "samples.h"

#include "../../kernels/cpu/common/floats.h"
#include "../../kernels/cpu/dense/ukernels.h"
#include "../../kernels/cpu/int8/ukernels.h"

#include <map>

// The emulated copy of a function, null where its instruction set has none.
#define LOWBIT_EMULATED_scalar(function) nullptr
#define LOWBIT_EMULATED_avx2(function) nullptr
#if LOWBIT_TEST_EMULATED
#define LOWBIT_EMULATED_avx512vnni(function) emulated_##function
#define LOWBIT_EMULATED_avx512bf16(function) emulated_##function
#define LOWBIT_EMULATED_amx(function) emulated_##function
#else
#define LOWBIT_EMULATED_avx512vnni(function) nullptr
#define LOWBIT_EMULATED_avx512bf16(function) nullptr
#define LOWBIT_EMULATED_amx(function) nullptr
#endif

// Declarations of the emulated copies.
#define LOWBIT_DECLARE_scalar(type, function)
#define LOWBIT_DECLARE_avx2(type, function)
#define LOWBIT_DECLARE_avx512vnni(type, function) type emulated_##function;
#define LOWBIT_DECLARE_avx512bf16(type, function) type emulated_##function;
#define LOWBIT_DECLARE_amx(type, function) type emulated_##function;

// One way to run a row of a table.
template <typename Function> struct Variant {
    using Pointer = Function *;
    std::string name; // as in the function's name: "f32__avx2"; then "_emulated" for the copy
    uint32_t needs;   // LOWBIT_ISA_
    Pointer run;
    bool emulated;

    friend void PrintTo(const Variant &variant, std::ostream *out) { *out << variant.name; }
};

template <typename Function>
void add_variants(std::vector<Variant<Function>> &variants, const char *name, uint32_t isa,
                  typename Variant<Function>::Pointer native,
                  typename Variant<Function>::Pointer emulated) {
    variants.push_back({name, isa, native, false});
    if (emulated)
        variants.push_back({std::string(name) + "_emulated", LOWBIT_ISA_AVX2, emulated, true});
}

struct VariantName {
    template <typename Info> std::string operator()(const Info &info) const {
        return info.param.name;
    }
};

// Which instruction sets ran in which form; printed when all tests are done.
class IsaReport : public testing::Environment {
  public:
    static IsaReport &get() {
        static IsaReport *report = new IsaReport; // GoogleTest deletes it
        return *report;
    }
    void TearDown() override {
        for (uint32_t bit = 1; const char *isa = lowbit_cpu_isa_name(bit); bit <<= 1)
            if (native[isa] + emulated[isa] + skipped[isa])
                std::printf("%-10s  %3d tests native, %3d emulated, %3d skipped\n", isa,
                            native[isa], emulated[isa], skipped[isa]);
    }
    std::map<std::string, int> native, emulated, skipped;
};

inline testing::Environment *const isa_report =
    testing::AddGlobalTestEnvironment(&IsaReport::get());

// A test of one row: skipped, and said so, where the machine cannot run it.
template <typename Row> class UkernelTest : public testing::TestWithParam<Row> {
  protected:
    void SetUp() override {
        const Row &variant = this->GetParam();
        const std::string function = variant.name.substr(0, variant.name.find("_emulated"));
        const std::string isa = function.substr(function.find("__") + 2);
        IsaReport &report = IsaReport::get();
        if (!(lowbit_cpu_isa() & variant.needs)) {
            report.skipped[isa]++;
            GTEST_SKIP() << "this machine lacks " << lowbit_cpu_isa_name(variant.needs);
        }
        (variant.emulated ? report.emulated : report.native)[isa]++;
    }
};

// count elements before a guard page, or after one; all bytes 0xa5 at first, so that comparing
// whole arrays also finds what was written between rows.
template <typename T> class Array {
  public:
    explicit Array(size_t count, GuardedBuffer::Side side = GuardedBuffer::at_end)
        : buffer_(count * sizeof(T), side) {
        std::memset(buffer_.data(), 0xa5, buffer_.size());
    }
    T *data() const { return buffer_.as<T>(); }
    T &operator[](size_t i) const { return data()[i]; }
    size_t size() const { return buffer_.size() / sizeof(T); }
    size_t bytes() const { return buffer_.size(); }

  private:
    GuardedBuffer buffer_;
};

// Elements of a float type chosen at run time.
class Floats {
  public:
    Floats(lowbit_float type, size_t count, GuardedBuffer::Side side = GuardedBuffer::at_end)
        : type_(type), count_(count), bytes_(count * lowbit_float_size(type), side) {}

    lowbit_float type() const { return type_; }
    void *data() const { return bytes_.data(); }
    size_t size() const { return count_; }
    const Array<unsigned char> &bytes() const { return bytes_; }

    float get(size_t i) const {
        if (type_ != f32)
            return reference_from_half((lowbit_dtype)type_, ((uint16_t *)data())[i]);
        float value;
        std::memcpy(&value, (char *)data() + i * sizeof value, sizeof value);
        return value;
    }
    void set(size_t i, float value) {
        const uint16_t half = type_ == f32 ? 0 : reference_to_half((lowbit_dtype)type_, value);
        std::memcpy((char *)data() + i * lowbit_float_size(type_),
                    type_ == f32 ? (void *)&value : (void *)&half, lowbit_float_size(type_));
    }
    void set_bits(size_t i, uint32_t bits) {
        std::memcpy((char *)data() + i * lowbit_float_size(type_), &bits, lowbit_float_size(type_));
    }

  private:
    lowbit_float type_;
    size_t count_;
    Array<unsigned char> bytes_;
};

inline uint16_t to_bf16(float value) {
    return reference_to_half(LOWBIT_BFLOAT16, value);
}
inline float from_bf16(uint16_t bits) {
    return reference_from_half(LOWBIT_BFLOAT16, bits);
}

// Zeros, subnormals, the largest numbers, infinities, NaN of both signs, quiet and signalling.
inline float extreme(Random &random) {
    const uint32_t bits[] = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000,
                             0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
                             0xffc12345, 0x7f800001, 0xff812345, 0x33000000, 0x477fe000};
    return lowbit_float_from_bits(random.pick(bits));
}

// Within (-4, 4); wild: every now and then an extreme number or any bits.
inline float sample(Random &random, bool wild) {
    if (wild && random.one_in(8))
        return extreme(random);
    if (wild && random.one_in(8))
        return lowbit_float_from_bits((uint32_t)random.bits());
    return random.uniform(-4, 4);
}

inline void fill(Floats &x, Random &random, bool wild) {
    for (size_t i = 0; i < x.size(); i++)
        x.set(i, sample(random, wild));
}

inline void fill(const Array<float> &x, Random &random, bool wild) {
    for (size_t i = 0; i < x.size(); i++)
        x[i] = sample(random, wild);
}

// Both hold the same bits. Any NaN equals any other where nan_equal: fp32 between kernels, where a
// NaN's payload depends on the order of an instruction's operands.
inline testing::AssertionResult same_bits(const void *expected, const void *actual, size_t bytes,
                                          size_t element, bool nan_equal = false) {
    const auto *want = static_cast<const unsigned char *>(expected);
    const auto *have = static_cast<const unsigned char *>(actual);
    if (bytes == 0 || std::memcmp(want, have, bytes) == 0)
        return testing::AssertionSuccess();
    for (size_t i = 0; i < bytes; i += element) {
        uint64_t w = 0, h = 0;
        std::memcpy(&w, want + i, element);
        std::memcpy(&h, have + i, element);
        const auto is_nan = [](uint64_t bits) { return (bits & 0x7fffffff) > 0x7f800000; };
        if (w == h || (nan_equal && is_nan(w) && is_nan(h)))
            continue;
        return testing::AssertionFailure() << std::hex << "element " << std::dec << i / element
                                           << std::hex << ": expected bits " << w << ", got " << h;
    }
    return testing::AssertionSuccess();
}

template <typename T>
testing::AssertionResult same_bits(const Array<T> &expected, const Array<T> &actual,
                                   bool nan_equal = false) {
    return same_bits(expected.data(), actual.data(), expected.bytes(), sizeof(T), nan_equal);
}

// Every length around a vector's or a block's, and some long ones.
inline std::vector<size_t> lengths() {
    std::vector<size_t> k;
    for (size_t i = 0; i <= 200; i++)
        k.push_back(i);
    for (size_t i : {255, 256, 257, 383, 384, 1000, 1023, 1024, 1025, 4095, 4096, 4097})
        k.push_back(i);
    return k;
}

#endif
