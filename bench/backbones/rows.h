/* Rows of K numbers, and the functions of them that the C files of this folder share. What is an argument or a result of
   matrix products is float32 or, where `bf16` is set, the upper halves of float32 numbers; everything else is float32. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

/* molecules, which are sorted by size, are dealt out to threads one by one */
#define ON_THREADS _Pragma("omp parallel for schedule(static, 1) num_threads(threads)")
#define FOR_EACH_MOLECULE for (int64_t m = 0; m < M; m++)

/* exp to 1e-7 relative: 2^n times a polynomial in the remainder (S. Moshier, Cephes library, expf). NaN stays NaN,
   and the sigmoids of what is cut off are still normal numbers. */
static inline float exponential(float x) {
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f); /* log2(e) */
    float f = x - n * 0.693359375f + n * 2.12194440e-4f; /* n ln(2) in two parts */
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static inline float sigmoid(float z) { return 1.0f / (1.0f + exponential(-z)); }

static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t even = bits + 0x7fff + ((bits >> 16) & 1);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even >> 16;
}

/* K numbers from place `at`. */
static inline void load(const void *from, int64_t at, int64_t K, int64_t bf16, float *restrict to) {
    if (!bf16) {
        memcpy(to, (const float *)from + at, K * sizeof(float));
        return;
    }
    const uint16_t *restrict half = (const uint16_t *)from + at;
    for (int64_t k = 0; k < K; k++) {
        uint32_t bits = (uint32_t)half[k] << 16;
        memcpy(to + k, &bits, 4);
    }
}

static inline void store(const float *restrict from, void *to, int64_t at, int64_t K, int64_t bf16) {
    if (!bf16) {
        memcpy((float *)to + at, from, K * sizeof(float));
        return;
    }
    uint16_t *restrict half = (uint16_t *)to + at;
    for (int64_t k = 0; k < K; k++) half[k] = rounded(from[k]);
}

static inline float dot(const float *restrict x, const float *restrict y, int64_t K) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; k++) sum += x[k] * y[k];
    return sum;
}

static inline void add(float *restrict to, float factor, const float *restrict x, int64_t K) {
    for (int64_t k = 0; k < K; k++) to[k] += factor * x[k];
}
