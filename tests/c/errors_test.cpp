// SPDX-License-Identifier: MIT
// Bad input: every rule of every operator is refused with a message that names the operator, the
// argument, what was given and what is expected, and no output is written.

#include "testing.h"

#include <cfloat>
#include <cmath>
#include <functional>

namespace {

enum : unsigned {
    FLOATS = 1 << LOWBIT_FLOAT32 | 1 << LOWBIT_FLOAT16 | 1 << LOWBIT_BFLOAT16,
    SCALES = 1 << LOWBIT_FLOAT32 | 1 << LOWBIT_FLOAT16,
    INT8 = 1 << LOWBIT_INT8,
    INT32 = 1 << LOWBIT_INT32,
    UINT8 = 1 << LOWBIT_UINT8,
    FLOAT32 = 1 << LOWBIT_FLOAT32,
};

enum Kind { input, optional_input, contiguous_input, output };

struct Argument {
    const char *name;
    unsigned dtypes; // accepted
    char rows, cols; // as size_of reads them
    Kind kind;
    int given = LOWBIT_FLOAT32; // the least dtype that a valid call here gives it

    lowbit_dtype dtype() const {
        int first = given;
        while (!(dtypes >> first & 1))
            first++;
        return (lowbit_dtype)first;
    }
};

struct Call;

struct Operator {
    const char *name;
    std::vector<Argument> arguments;
    size_t (*workspace_size)(size_t m, size_t n, size_t k, size_t max_tasks); // null: takes none
    lowbit_status (*run)(const Call &);
    const char *label = ""; // tells operators of one name apart
};

// How GoogleTest prints a parameter.
void PrintTo(const Operator &op, std::ostream *out) {
    *out << op.name << op.label;
}

// M, N, K, 1; E = 32 N + K elements in B blocks of 32; C or V values of a codebook. N * K codes of 4
// bits are P bytes and S blocks of 32, whose scales are T blocks.
size_t size_of(char letter, size_t m, size_t n, size_t k) {
    switch (letter) {
    case 'M': return m;
    case 'N': return n;
    case 'K': return k;
    case 'E': return 32 * n + k;
    case 'B': return n + (k + 31) / 32;
    case 'C': return 256;
    case 'V': return 16;
    case 'P': return (n * k + 1) / 2;
    case 'S': return (n * k + 31) / 32;
    case 'T': return ((n * k + 31) / 32 + 255) / 256;
    default: return 1;
    }
}

// The arguments of one call: valid at first, for a test to break.
struct Call {
    const Operator &op;
    std::vector<Tensor> storage;
    std::vector<lowbit_tensor> tensors;
    std::vector<const lowbit_tensor *> arguments;
    float threshold = 0;
    size_t blocksize = 32;
    const lowbit_executor *executor = nullptr;
    GuardedBuffer scratch;
    void *workspace;
    size_t workspace_size;

    explicit Call(const Operator &o, size_t m = 3, size_t n = 4, size_t k = 5) : op(o) {
        for (const Argument &a : op.arguments) {
            storage.emplace_back(a.dtype(), size_of(a.rows, m, n, k), size_of(a.cols, m, n, k));
            tensors.push_back(*storage.back().operator->());
            if (a.kind != output)
                std::memset(tensors.back().data, 0, storage.back().buffer().size());
        }
        for (const lowbit_tensor &tensor : tensors)
            arguments.push_back(&tensor);
        workspace_size = op.workspace_size ? op.workspace_size(m, n, k, 1) : 0;
        scratch = GuardedBuffer((workspace_size + 63) / 64 * 64);
        workspace = scratch.data();
    }

    const lowbit_tensor *operator[](size_t i) const { return arguments[i]; }

    lowbit_status run() const { return op.run(*this); }

    void expect_refused(const std::vector<std::string> &words) const {
        EXPECT_EQ(run(), LOWBIT_INVALID_ARGUMENT);
        const std::string message = lowbit_last_error();
        EXPECT_EQ(message.find(std::string(op.name) + ": "), 0u) << message;
        for (const std::string &word : words)
            EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks " << word;
        for (size_t i = 0; i < storage.size(); i++) {
            if (op.arguments[i].kind != output)
                continue;
            const auto *bytes = storage[i].buffer().as<unsigned char>();
            for (size_t b = 0; b < storage[i].buffer().size(); b++)
                ASSERT_EQ(bytes[b], 0xa5) << op.arguments[i].name << " was written";
        }
    }
};

// A 4-bit weight whose first argument is the one at first.
lowbit_lut4_weight weight_of(const Call &c, size_t first, bool nested) {
    return {c[first],
            c[first + 1],
            c[first + 2],
            c.blocksize,
            nested ? c[first + 3] : nullptr,
            nested ? c[first + 4] : nullptr,
            nested ? c[first + 5] : nullptr};
}

lowbit_status run_lut4_dequantize(const Call &c, bool nested) {
    const lowbit_lut4_weight weight = weight_of(c, 0, nested);
    return lowbit_lut4_dequantize(&weight, c.arguments.back(), c.executor);
}

lowbit_status run_lut4_linear(const Call &c, bool nested) {
    const size_t bias = c.arguments.size() - 2;
    const lowbit_lut4_linear_args args{c[0], weight_of(c, 1, nested), c[bias], c[bias + 1]};
    return lowbit_lut4_linear(&args, c.executor, c.workspace, c.workspace_size);
}

lowbit_status run_lut4_linear_grad_input(const Call &c, bool nested) {
    const lowbit_lut4_linear_grad_input_args args{c[0], weight_of(c, 1, nested),
                                                  c.arguments.back()};
    return lowbit_lut4_linear_grad_input(&args, c.executor, c.workspace, c.workspace_size);
}

const Argument packed = {"packed", UINT8, 'P', '1', contiguous_input};
const Argument absmax = {"absmax", FLOAT32 | UINT8, 'S', '1', contiguous_input};
const Argument absmax_codes = {"absmax", FLOAT32 | UINT8, 'S', '1', contiguous_input, LOWBIT_UINT8};
const Argument codebook16 = {"codebook", FLOAT32, 'V', '1', contiguous_input};
const Argument nested_absmax = {"nested_absmax", FLOAT32, 'T', '1', contiguous_input};
const Argument nested_codebook = {"nested_codebook", FLOAT32, 'C', '1', contiguous_input};
const Argument nested_offset = {"nested_offset", FLOAT32, '1', '1', contiguous_input};

const Operator operators[] = {
    {"blockwise_quantize",
     {{"x", FLOATS, 'E', '1', input},
      {"codebook", FLOAT32, 'C', '1', contiguous_input},
      {"q", UINT8, 'E', '1', output},
      {"absmax", FLOAT32, 'B', '1', output}},
     nullptr,
     [](const Call &c) {
         return lowbit_blockwise_quantize(c[0], c[1], c.blocksize, c[2], c[3], c.executor);
     }},
    {"blockwise_dequantize",
     {{"q", UINT8, 'E', '1', input},
      {"absmax", FLOAT32, 'B', '1', contiguous_input},
      {"codebook", FLOAT32, 'C', '1', contiguous_input},
      {"out", FLOATS, 'E', '1', output}},
     nullptr,
     [](const Call &c) {
         return lowbit_blockwise_dequantize(c[0], c[1], c[2], c.blocksize, c[3], c.executor);
     }},
    {"int8_quantize",
     {{"x", FLOATS, 'M', 'K', input},
      {"q", INT8, 'M', 'K', output},
      {"absmax", SCALES, 'M', '1', output}},
     nullptr,
     [](const Call &c) { return lowbit_int8_quantize(c[0], c.threshold, c[1], c[2], c.executor); }},
    {"int8_requantize_",
     {{"master", FLOATS, 'M', 'K', input},
      {"q", INT8, 'M', 'K', output},
      {"absmax", SCALES, 'M', '1', output}},
     nullptr,
     [](const Call &c) { return lowbit_int8_requantize(c[1], c[2], c[0], c.executor); }},
    {"int8_quantize_offset",
     {{"weight", FLOATS, 'M', 'K', input},
      {"q", INT8, 'M', 'K', output},
      {"absmax", SCALES, 'M', '1', output},
      {"offset", SCALES, 'M', '1', output}},
     nullptr,
     [](const Call &c) { return lowbit_int8_quantize_offset(c[0], c[1], c[2], c[3], c.executor); }},
    {"int8_dequantize",
     {{"q", INT8, 'M', 'K', input},
      {"absmax", SCALES, 'M', '1', contiguous_input},
      {"offset", SCALES, 'M', '1', optional_input},
      {"out", FLOATS, 'M', 'K', output}},
     nullptr,
     [](const Call &c) { return lowbit_int8_dequantize(c[0], c[1], c[2], c[3], c.executor); }},
    {"int8_matmul",
     {{"a", INT8, 'M', 'K', input},
      {"b", INT8, 'N', 'K', contiguous_input},
      {"out", INT32, 'M', 'N', output}},
     lowbit_int8_matmul_workspace_size,
     [](const Call &c) {
         return lowbit_int8_matmul(c[0], c[1], c[2], c.executor, c.workspace, c.workspace_size);
     }},
    {"int8_linear",
     {{"x", FLOATS, 'M', 'K', input},
      {"weight", INT8, 'N', 'K', contiguous_input},
      {"absmax", SCALES, 'N', '1', contiguous_input},
      {"offset", SCALES, 'N', '1', optional_input},
      {"bias", FLOATS, 'N', '1', optional_input},
      {"y", FLOATS, 'M', 'N', output}},
     lowbit_int8_linear_workspace_size,
     [](const Call &c) {
         const lowbit_int8_linear_args args{c[0], c[1], c[2], c[3], c[4], c.threshold, c[5]};
         return lowbit_int8_linear(&args, c.executor, c.workspace, c.workspace_size);
     }},
    {"int8_linear_grad_input",
     {{"grad_output", FLOATS, 'M', 'N', input},
      {"weight", INT8, 'N', 'K', contiguous_input},
      {"absmax", SCALES, 'N', '1', contiguous_input},
      {"offset", SCALES, 'N', '1', optional_input},
      {"grad_input", FLOATS, 'M', 'K', output}},
     lowbit_int8_linear_grad_input_workspace_size,
     [](const Call &c) {
         const lowbit_int8_linear_grad_input_args args{c[0], c[1], c[2], c[3], c[4]};
         return lowbit_int8_linear_grad_input(&args, c.executor, c.workspace, c.workspace_size);
     }},
    {"lut4_quantize",
     {{"weight", FLOATS, 'N', 'K', contiguous_input},
      codebook16,
      {"packed", UINT8, 'P', '1', output},
      {"absmax", FLOAT32, 'S', '1', output}},
     nullptr,
     [](const Call &c) {
         return lowbit_lut4_quantize(c[0], c[1], c.blocksize, c[2], c[3], c.executor);
     }},
    {"lut4_dequantize",
     {packed, absmax, codebook16, {"out", FLOATS, 'N', 'K', output}},
     nullptr,
     [](const Call &c) { return run_lut4_dequantize(c, false); }},
    {"lut4_dequantize",
     {packed,
      absmax_codes,
      codebook16,
      nested_absmax,
      nested_codebook,
      nested_offset,
      {"out", FLOATS, 'N', 'K', output}},
     nullptr,
     [](const Call &c) { return run_lut4_dequantize(c, true); },
     "_nested"},
    {"lut4_linear",
     {{"x", FLOATS, 'M', 'K', input},
      packed,
      absmax,
      codebook16,
      {"bias", FLOATS, 'N', '1', optional_input},
      {"y", FLOATS, 'M', 'N', output}},
     lowbit_lut4_linear_workspace_size,
     [](const Call &c) { return run_lut4_linear(c, false); }},
    {"lut4_linear",
     {{"x", FLOATS, 'M', 'K', input},
      packed,
      absmax_codes,
      codebook16,
      nested_absmax,
      nested_codebook,
      nested_offset,
      {"bias", FLOATS, 'N', '1', optional_input},
      {"y", FLOATS, 'M', 'N', output}},
     lowbit_lut4_linear_workspace_size,
     [](const Call &c) { return run_lut4_linear(c, true); },
     "_nested"},
    {"lut4_linear_grad_input",
     {{"grad_output", FLOATS, 'M', 'N', input},
      packed,
      absmax,
      codebook16,
      {"grad_input", FLOATS, 'M', 'K', output}},
     lowbit_lut4_linear_grad_input_workspace_size,
     [](const Call &c) { return run_lut4_linear_grad_input(c, false); }},
    {"lut4_linear_grad_input",
     {{"grad_output", FLOATS, 'M', 'N', input},
      packed,
      absmax_codes,
      codebook16,
      nested_absmax,
      nested_codebook,
      nested_offset,
      {"grad_input", FLOATS, 'M', 'K', output}},
     lowbit_lut4_linear_grad_input_workspace_size,
     [](const Call &c) { return run_lut4_linear_grad_input(c, true); },
     "_nested"},
};

const Operator &operator_named(const std::string &name) {
    for (const Operator &op : operators)
        if (std::string(op.name) + op.label == name)
            return op;
    throw std::invalid_argument(name);
}

class Errors : public testing::TestWithParam<Operator> {
  protected:
    const Operator &op = GetParam();

    // Breaks one argument after the other; applies says of which, words what the message holds.
    void each(const std::function<bool(const Argument &)> &applies,
              const std::function<void(lowbit_tensor &)> &break_it,
              const std::vector<std::string> &words) {
        for (size_t i = 0; i < op.arguments.size(); i++)
            if (applies(op.arguments[i])) {
                Call call(op);
                break_it(call.tensors[i]);
                std::vector<std::string> all = words;
                all.push_back(op.arguments[i].name);
                call.expect_refused(all);
            }
    }
};

INSTANTIATE_TEST_SUITE_P(, Errors, testing::ValuesIn(operators), [](const auto &info) {
    return std::string(info.param.name) + info.param.label;
});

bool any(const Argument &) {
    return true;
}
bool is_matrix(const Argument &a) {
    return a.cols != '1';
}

TEST_P(Errors, ValidCallsPass) {
    EXPECT_EQ(Call(op).run(), LOWBIT_OK) << lowbit_last_error();
}

TEST_P(Errors, NullTensor) {
    for (size_t i = 0; i < op.arguments.size(); i++) {
        Call call(op);
        call.arguments[i] = nullptr;
        if (op.arguments[i].kind == optional_input)
            EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
        else
            call.expect_refused({std::string(op.arguments[i].name) + " is null"});
    }
}

TEST_P(Errors, WrongDtype) {
    for (size_t i = 0; i < op.arguments.size(); i++)
        for (int dtype = LOWBIT_FLOAT32; dtype <= LOWBIT_UINT8; dtype++) {
            const Argument &argument = op.arguments[i];
            if (argument.dtypes >> dtype & 1)
                continue;
            Call call(op);
            call.tensors[i].dtype = (lowbit_dtype)dtype;
            call.expect_refused(
                {std::string(argument.name) + " has dtype " + dtype_name((lowbit_dtype)dtype),
                 "expected", dtype_name(argument.dtype())});
        }
    each(any, [](lowbit_tensor &t) { t.dtype = (lowbit_dtype)99; }, {"dtype unknown"});
}

TEST_P(Errors, OffsetAndAbsmaxDiffer) {
    each([](const Argument &a) { return std::string(a.name) == "offset"; },
         [](lowbit_tensor &t) { t.dtype = LOWBIT_FLOAT16; },
         {"offset has dtype float16", "expected absmax's float32"});
}

// Of the sizes M, N and K each stands in two arguments or more: whichever is wrong, one of them is
// named, with the size it has and the size the other has. Only the product of N and K stands in a 4-bit
// weight, which is what is named then.
TEST_P(Errors, SizesDisagree) {
    for (size_t i = 0; i < op.arguments.size(); i++)
        for (size_t lowbit_tensor::*size : {&lowbit_tensor::rows, &lowbit_tensor::cols})
            for (size_t change : {(size_t)1, (size_t)-1}) {
                Call call(op);
                lowbit_tensor &tensor = call.tensors[i];
                const std::string before = std::to_string(tensor.*size);
                tensor.*size += change;
                tensor.stride = tensor.cols;
                const Argument &argument = op.arguments[i];
                if (std::string(op.name).substr(0, 4) == "lut4" && is_matrix(argument) &&
                    (size == &lowbit_tensor::cols || argument.rows == 'N'))
                    call.expect_refused({"packed has 10 rows, expected "});
                else
                    call.expect_refused(
                        {" has ", before, std::to_string(tensor.*size), ", expected "});
            }
}

TEST_P(Errors, StrideBelowColumns) {
    each(is_matrix, [](lowbit_tensor &t) { t.stride = t.cols - 1; }, {"stride", "columns"});
}

TEST_P(Errors, NotContiguous) {
    for (size_t i = 0; i < op.arguments.size(); i++) {
        Call call(op, 3, 300, 64);
        const Argument &argument = op.arguments[i];
        if ((argument.kind != contiguous_input && argument.cols != '1' &&
             op.name != std::string("lut4_dequantize")) ||
            call.tensors[i].rows == 1)
            continue;
        call.tensors[i].stride++;
        call.expect_refused({argument.name, "stride", "contiguous"});
    }
}

TEST_P(Errors, NoData) {
    each(any, [](lowbit_tensor &t) { t.data = nullptr; }, {"has no data"});
}

TEST_P(Errors, MisalignedData) {
    each([](const Argument &a) { return dtype_size(a.dtype()) > 1; },
         [](lowbit_tensor &t) { t.data = (char *)t.data + 1; }, {"aligned to 4 bytes"});
}

// The product of rows and stride leaves size_t.
TEST_P(Errors, LargerThanTheAddressSpace) {
    Call call(op);
    call.tensors[0].stride = SIZE_MAX / 2;
    call.expect_refused({op.arguments[0].name, std::to_string(SIZE_MAX / 2), "address space"});
}

TEST_P(Errors, UnusableExecutor) {
    Call call(op);
    lowbit_executor executor{nullptr, 2, nullptr, false, nullptr};
    call.executor = &executor;
    call.expect_refused({"executor", "no parallel_for"});
    executor.parallel_for = [](void *, size_t, lowbit_task, void *) { FAIL() << "called"; };
    executor.max_tasks = 0;
    call.expect_refused({"executor", "max_tasks 0", "at least 1"});
}

// Matrices without elements need no data, and any one of M, N and K may be zero.
TEST_P(Errors, EmptyMatricesPass) {
    for (int zero = 1; zero < 8; zero++)
        for (int dtype = LOWBIT_FLOAT32; dtype <= LOWBIT_UINT8; dtype++) {
            if (!(op.arguments[0].dtypes >> dtype & 1))
                continue;
            Call call(op, zero & 1 ? 0 : 3, zero & 2 ? 0 : 4, zero & 4 ? 0 : 5);
            call.tensors[0].dtype = (lowbit_dtype)dtype;
            for (lowbit_tensor &tensor : call.tensors)
                if (tensor.rows == 0 || tensor.cols == 0)
                    tensor.data = nullptr;
            EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
        }
}

TEST(ErrorsOf, Threshold) {
    for (const char *name : {"int8_quantize", "int8_linear"})
        for (float threshold : {-1.0f, -FLT_TRUE_MIN, NAN, -NAN, INFINITY, -INFINITY})
            for (bool hostile : {false, true}) {
                Call call(operator_named(name));
                call.threshold = threshold;
                const HostileEnvironment environment(hostile);
                call.expect_refused({"threshold is ", "finite"});
            }
    for (float threshold : {0.0f, -0.0f, FLT_TRUE_MIN, FLT_MAX}) {
        Call call(operator_named("int8_linear"));
        call.threshold = threshold;
        EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
    }
}

TEST(ErrorsOf, Blocksize) {
    for (const char *name : {"blockwise_quantize", "blockwise_dequantize", "lut4_quantize",
                             "lut4_dequantize", "lut4_linear", "lut4_linear_grad_input"})
        for (size_t blocksize : {(size_t)0, (size_t)1, (size_t)16, (size_t)33, (size_t)48,
                                 (size_t)8192, (size_t)1 << 32, SIZE_MAX}) {
            Call call(operator_named(name));
            call.blocksize = blocksize;
            call.expect_refused(
                {"blocksize is " + std::to_string(blocksize), "power of two from 32 to 4096"});
        }
}

TEST(ErrorsOf, Codebook) {
    for (const char *name : {"blockwise_quantize", "blockwise_dequantize"})
        for (bool hostile : {false, true})
            for (size_t i : {(size_t)1, (size_t)100, (size_t)255}) {
                Call call(operator_named(name));
                const size_t argument = name[10] == 'q' ? 1 : 2;
                float *value = (float *)call.tensors[argument].data + i;
                const std::string element = "codebook[" + std::to_string(i) + "] is ";
                const HostileEnvironment environment(hostile);
                for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
                    *value = bad;
                    call.expect_refused({element, "finite"});
                }
                for (float bad : {-1.0f, -FLT_TRUE_MIN}) {
                    *value = bad;
                    call.expect_refused({element, " after 0", "ascending"});
                }
                *value = -0.0f; // equal to the zeros around it
                EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
            }
}

// Values of a lut4 codebook may stand in any order, but have to be finite.
TEST(ErrorsOf, Lut4Codebooks) {
    for (const Operator &op : operators)
        for (size_t argument = 0; argument < op.arguments.size(); argument++)
            for (bool hostile : {false, true}) {
                const std::string name = op.arguments[argument].name;
                if (std::string(op.name).substr(0, 4) != "lut4" ||
                    name.find("codebook") == std::string::npos)
                    continue;
                Call call(op);
                const size_t last = call.tensors[argument].rows - 1;
                for (size_t i : {(size_t)0, last / 2, last}) {
                    float &value = ((float *)call.tensors[argument].data)[i];
                    const HostileEnvironment environment(hostile);
                    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
                        value = bad;
                        call.expect_refused(
                            {name + " holds NaN or infinity at " + std::to_string(i),
                             "expected finite values"});
                    }
                    value = i % 2 ? FLT_MAX : -FLT_TRUE_MIN;
                }
                EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
            }
}

TEST(ErrorsOf, NestedScalesOfFloats) {
    for (const char *name :
         {"lut4_dequantize_nested", "lut4_linear_nested", "lut4_linear_grad_input_nested"}) {
        Call call(operator_named(name), 3, 4, 32);
        for (size_t i = 0; i < call.arguments.size(); i++) {
            const std::string argument = call.op.arguments[i].name;
            if (argument == "absmax")
                call.tensors[i] = {call.tensors[i - 1].data, LOWBIT_FLOAT32, 4, 1, 1}; // of packed
            else if (argument.find("nested") == 0) {
                call.expect_refused({argument + " is given with float32 absmax",
                                     "expected uint8 absmax or none of nested_absmax, "
                                     "nested_codebook and nested_offset"});
                call.arguments[i] = nullptr;
            }
        }
        EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
    }
}

TEST(ErrorsOf, Lut4WeightLargerThanTheAddressSpace) {
    const size_t large = (size_t)1 << 40;
    for (const char *name : {"lut4_linear", "lut4_linear_grad_input"}) {
        Call call(operator_named(name), 0, 1, 1);
        call.tensors.front().cols = call.tensors.back().cols = large;
        call.expect_refused({"a weight of " + std::to_string(large) + " x " +
                             std::to_string(large) + " is larger than the address space"});
    }
}

TEST(ErrorsOf, TooManyColumns) {
    const std::pair<const char *, size_t> limits[] = {{"int8_matmul", LOWBIT_INT8_MATMUL_MAX_K},
                                                      {"int8_linear", LOWBIT_INT8_LINEAR_MAX_K}};
    for (const auto &[name, limit] : limits) {
        Call(operator_named(name), 1, 1, limit + 1)
            .expect_refused(
                {"K = " + std::to_string(limit + 1), "at most " + std::to_string(limit)});
        EXPECT_EQ(Call(operator_named(name), 1, 1, limit).run(), LOWBIT_OK) << lowbit_last_error();
    }
}

TEST(ErrorsOf, Workspace) {
    for (const char *name : {"int8_matmul", "int8_linear", "int8_linear_grad_input", "lut4_linear",
                             "lut4_linear_grad_input"}) {
        const Operator &op = operator_named(name);
        Call small(op), none(op), misaligned(op);
        const std::string needed = "expected " + std::to_string(small.workspace_size);
        small.workspace_size--;
        small.expect_refused(
            {"workspace has " + std::to_string(small.workspace_size) + " bytes", needed});
        none.workspace = nullptr;
        none.expect_refused({"workspace has 0 bytes", needed});
        misaligned.workspace = (char *)misaligned.workspace + 32;
        misaligned.expect_refused({"workspace", "aligned to 64 bytes"});
    }
}

TEST(ErrorsOf, NullArgs) {
    EXPECT_EQ(lowbit_int8_linear(nullptr, nullptr, nullptr, 0), LOWBIT_INVALID_ARGUMENT);
    EXPECT_STREQ(lowbit_last_error(), "int8_linear: args is null");
    EXPECT_EQ(lowbit_int8_linear_grad_input(nullptr, nullptr, nullptr, 0), LOWBIT_INVALID_ARGUMENT);
    EXPECT_STREQ(lowbit_last_error(), "int8_linear_grad_input: args is null");
    EXPECT_EQ(lowbit_lut4_linear(nullptr, nullptr, nullptr, 0), LOWBIT_INVALID_ARGUMENT);
    EXPECT_STREQ(lowbit_last_error(), "lut4_linear: args is null");
    EXPECT_EQ(lowbit_lut4_linear_grad_input(nullptr, nullptr, nullptr, 0), LOWBIT_INVALID_ARGUMENT);
    EXPECT_STREQ(lowbit_last_error(), "lut4_linear_grad_input: args is null");
    EXPECT_EQ(lowbit_lut4_dequantize(nullptr, nullptr, nullptr), LOWBIT_INVALID_ARGUMENT);
    EXPECT_STREQ(lowbit_last_error(), "lut4_dequantize: weight is null");
}

// Only the last of many rows does not fit, and the others may be done before it is met.
TEST(ErrorsOf, ScaleBeyondFloat16) {
    const Way three{"", 3, true, false};
    const Executor executor(three);
    for (const char *name : {"int8_quantize", "int8_quantize_offset"}) {
        Call call(operator_named(name), 500, 4, 300);
        for (size_t i = 2; i < call.tensors.size(); i++)
            call.tensors[i].dtype = LOWBIT_FLOAT16;
        float *last = (float *)call.tensors[0].data + 500 * 300 - 1;
        const bool offset = call.tensors.size() == 4;
        const float largest = offset ? 2 * 65504.0f : 65504.0f;
        call.executor = executor;
        for (float value :
             {std::nextafter(largest, INFINITY), -std::nextafter(largest, INFINITY), FLT_MAX}) {
            *last = value;
            call.expect_refused({"absmax", "float16", "65504"});
        }
        *last = largest;
        EXPECT_EQ(call.run(), LOWBIT_OK) << lowbit_last_error();
    }
}

// The message is the thread's own, empty at first, and outlives calls that succeed.
TEST(ErrorsOf, MessageBelongsToTheThread) {
    Call broken(operator_named("int8_quantize"));
    broken.arguments[0] = nullptr;
    EXPECT_EQ(broken.run(), LOWBIT_INVALID_ARGUMENT);
    const std::string message = lowbit_last_error();
    std::thread([] {
        EXPECT_STREQ(lowbit_last_error(), "");
        Call other(operator_named("int8_matmul"));
        other.arguments[2] = nullptr;
        EXPECT_EQ(other.run(), LOWBIT_INVALID_ARGUMENT);
        EXPECT_NE(std::string(lowbit_last_error()).find("int8_matmul: out is null"),
                  std::string::npos);
    }).join();
    EXPECT_EQ(Call(operator_named("int8_quantize")).run(), LOWBIT_OK);
    EXPECT_EQ(lowbit_last_error(), message);
}

// LOWBIT_CPU_ISA is read once in a process, so each word gets one of its own.
class EnvironmentVariable : public testing::Test {
  protected:
    void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(EnvironmentVariable, UnknownWordFailsEveryOperator) {
    EXPECT_EXIT(
        {
            setenv("LOWBIT_CPU_ISA", "avx3", 1);
            EXPECT_EQ(lowbit_cpu_isa(), 0u);
            EXPECT_EQ(lowbit_int8_linear_ukernel(1, 1), nullptr);
            EXPECT_EQ(lowbit_lut4_linear_ukernel(LOWBIT_FLOAT32, 1, 64, 64), nullptr);
            for (const Operator &op : operators)
                Call(op).expect_refused(
                    {"LOWBIT_CPU_ISA", "\"avx3\"", "scalar, avx2, avx512vnni, avx512bf16 or amx"});
            std::fprintf(stderr, "all refused\n");
            std::exit(testing::Test::HasFailure());
        },
        testing::ExitedWithCode(0), "all refused");
}

TEST_F(EnvironmentVariable, CapsTheLevel) {
    EXPECT_EXIT(
        {
            setenv("LOWBIT_CPU_ISA", "scalar", 1);
            EXPECT_EQ(lowbit_cpu_isa(), (uint32_t)LOWBIT_ISA_SCALAR);
            for (const Operator &op : operators)
                EXPECT_EQ(Call(op).run(), LOWBIT_OK) << lowbit_last_error();
            std::exit(testing::Test::HasFailure());
        },
        testing::ExitedWithCode(0), "");
}

} // namespace
