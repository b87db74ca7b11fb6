/* Rows of K numbers, and the functions of them that the C files share. What is an argument or a result of
   matrix products is float32 or, where `bf16` is set, the upper halves of float32 numbers; everything else is float32. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

/* dealt out to threads one by one: molecules, which are sorted by size, or a run of numbers for each */
#define ON_THREADS _Pragma("omp parallel for schedule(static, 1) num_threads(threads)")
#define FOR_EACH_MOLECULE for (int64_t m = 0; m < M; m++)

/* a loop over numbers of which there is one for float32 and one for bf16 */
#define INLINE static inline __attribute__((always_inline))
#define IN_EITHER(bf16, function, ...) ((bf16) ? function(1, __VA_ARGS__) : function(0, __VA_ARGS__))

/* Arguments are cut off beyond it. Not a constant: a compiler that knew it would make a branch of what lies beyond, in
   every loop, instead of taking minima. */
__attribute__((visibility("hidden"))) float most = 87.0f;

/* exp to 2e-7 relative near 0 and to 1e-6 at 80, where multiplications and additions are fused, else to 4e-6: 2^n 2^f for
   x log2(e) = n + f, where n goes into the exponent's bits and 2^f is a polynomial of least relative error on [-1/2, 1/2]
   that is 1 at 0. The NaN that arithmetic makes stays NaN, and the sigmoids of what is cut off are still normal
   numbers. */
static inline float exponential(float x) {
    const float log2e = 1.44269504f, whole = 0x1.8p23f; /* a sum with it is a whole number */
    x = most < x ? most : x;
    x = -most > x ? -most : x;
    float n = x * log2e + whole; /* in its last bits */
    float f = x * log2e - (n - whole);
    float p = 1.326472731e-3f;
    p = p * f + 9.671512991e-3f;
    p = p * f + 5.550733581e-2f;
    p = p * f + 2.402224243e-1f;
    p = p * f + 6.931470037e-1f;
    p = p * f + 1.0f;
    uint32_t bits, exponent;
    memcpy(&bits, &p, 4);
    memcpy(&exponent, &n, 4);
    bits += exponent << 23;
    memcpy(&p, &bits, 4);
    return p;
}

static inline float sigmoid(float z) { return 1.0f / (1.0f + exponential(-z)); }

static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t even = bits + 0x7fff + ((bits >> 16) & 1);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even >> 16;
}

static inline float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float number(const void *from, int64_t at, int64_t bf16) {
    return bf16 ? widened(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

/* K numbers from place `at`. */
static inline void load(const void *from, int64_t at, int64_t K, int64_t bf16, float *restrict to) {
    if (!bf16) {
        memcpy(to, (const float *)from + at, K * sizeof(float));
        return;
    }
    const uint16_t *restrict half = (const uint16_t *)from + at;
    for (int64_t k = 0; k < K; k++) to[k] = widened(half[k]);
}

static inline void store(const float *restrict from, void *to, int64_t at, int64_t K, int64_t bf16) {
    if (!bf16) {
        memcpy((float *)to + at, from, K * sizeof(float));
        return;
    }
    uint16_t *restrict half = (uint16_t *)to + at;
    int64_t k = 0;
#ifdef __AVX512BF16__ /* one instruction, which compilers do not recognise; numbers below 1e-38 are zero to it */
    for (; k + 16 <= K; k += 16) {
        __m256bh some = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + k));
        memcpy(half + k, &some, sizeof some);
    }
#endif
    for (; k < K; k++) half[k] = rounded(from[k]);
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
