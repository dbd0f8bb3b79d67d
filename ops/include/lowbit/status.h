// SPDX-License-Identifier: MIT
// How a lowbit function reports failure.
#ifndef LOWBIT_STATUS_H
#define LOWBIT_STATUS_H

#if defined(__GNUC__)
#define LOWBIT_API __attribute__((visibility("default")))
#else
#define LOWBIT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lowbit_status {
    LOWBIT_OK = 0,
    LOWBIT_INVALID_ARGUMENT = 1, // an argument breaks the rule that the message states
    LOWBIT_UNSUPPORTED = 2,      // a valid request that this build or machine cannot serve
    LOWBIT_OUT_OF_MEMORY = 3,
    LOWBIT_CUDA_ERROR = 4,
} lowbit_status;

// What was wrong with the calling thread's last failed call: operator, argument, the value given
// and the rule. Empty before the first failure. Valid until the thread's next failed call.
LOWBIT_API const char *lowbit_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
