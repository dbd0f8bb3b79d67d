// SPDX-License-Identifier: MIT
// Quantizes a weight, multiplies activations with a few outliers by it, and compares with fp32:
// without and with decomposition. No torch, no threads.

#include <lowbit/lowbit.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { M = 16, N = 512, K = 1024 };

static void require(lowbit_status status) {
    if (status != LOWBIT_OK) {
        fprintf(stderr, "%s\n", lowbit_last_error());
        exit(EXIT_FAILURE);
    }
}

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        exit(EXIT_FAILURE);
    return memory;
}

// Roughly normal, mean 0 and variance 1.
static float normal(void) {
    float sum = -6.0f;
    for (int i = 0; i < 12; i++)
        sum += (float)rand() / (float)RAND_MAX;
    return sum;
}

// The relative error (root of summed squares) of y = x W^T.
static double error(const float *x, const float *w, const float *y) {
    double difference = 0, whole = 0;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double exact = 0;
            for (int k = 0; k < K; k++)
                exact += (double)x[m * K + k] * w[n * K + k];
            difference += (y[m * N + n] - exact) * (y[m * N + n] - exact);
            whole += exact * exact;
        }
    return sqrt(difference / whole);
}

int main(void) {
    float *w = allocate(sizeof(float[N][K])), *x = allocate(sizeof(float[M][K]));
    float *absmax = allocate(sizeof(float[N])), *y = allocate(sizeof(float[M][N]));
    int8_t *q = allocate(N * K);
    for (int i = 0; i < N * K; i++)
        w[i] = normal();
    for (int i = 0; i < M * K; i++)
        x[i] = i % K % 200 == 7 ? 40.0f : normal(); // six columns of outliers

    const lowbit_tensor weight = {w, LOWBIT_FLOAT32, N, K, K}, codes = {q, LOWBIT_INT8, N, K, K};
    const lowbit_tensor scales = {absmax, LOWBIT_FLOAT32, N, 1, 1};
    const lowbit_tensor input = {x, LOWBIT_FLOAT32, M, K, K}, output = {y, LOWBIT_FLOAT32, M, N, N};
    require(lowbit_int8_quantize(&weight, 0.0f, &codes, &scales, NULL));

    const size_t size = lowbit_int8_linear_workspace_size(M, N, K, 1);
    void *workspace = allocate(size);
    lowbit_int8_linear_args args = {.x = &input, .weight = &codes, .absmax = &scales, .y = &output};
    double errors[2];
    for (int i = 0; i < 2; i++) {
        args.threshold = i ? 6.0f : 0.0f;
        require(lowbit_int8_linear(&args, NULL, workspace, size));
        errors[i] = error(x, w, y);
        printf("threshold %g: relative error %.4f\n", (double)args.threshold, errors[i]);
    }
    printf("micro-kernel %s\n", lowbit_int8_linear_ukernel(M, K));
    free(w), free(x), free(absmax), free(y), free(q), free(workspace);
    return errors[1] < 0.01 && errors[1] < errors[0] / 2 ? EXIT_SUCCESS : EXIT_FAILURE;
}
