/* What bench/kernels/dit_passes.py does between matrix products: each function reads and writes its rows once, on
   `threads` threads of OpenMP, the ones that torch uses. Formulas and names are those of the Python file. Rows are atoms,
   ptr[m] to ptr[m + 1] those of molecule m of M; rows after the last molecule's, up to A, are padding and made zero. Rows
   of modulations have `stride` numbers, of which H count, those of their gradients `grad_stride`. What a linear layer made
   lacks its bias, which is added here; gradients of biases are added to a row of each thread, rows `apart` from one
   another. */

#include "rows.h"

#define ON_THREADS_IN_RUNS _Pragma("omp parallel for schedule(static) num_threads(threads)")
#define FOR_EACH_ATOM for (int64_t i = ptr[m]; i < ptr[m + 1]; i++)

/* Row i of K numbers. */
static inline const void *row(const void *rows, int64_t i, int64_t K, int64_t bf16) {
    return (const char *)rows + i * K * (bf16 ? sizeof(uint16_t) : sizeof(float));
}

/* Rows of K numbers from row `start` to row A. */
static void zero_rows(void *rows, int64_t start, int64_t A, int64_t K, int64_t bf16) {
    char *from = (char *)row(rows, start, K, bf16);
    memset(from, 0, (const char *)row(rows, A, K, bf16) - from);
}

static inline float total(const float *x, int64_t K) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; k++) sum += x[k];
    return sum;
}

INLINE void gated_sum(int64_t bf16, int64_t H, const float *restrict x, const void *restrict y,
                      const float *restrict bias, const float *restrict gate, float *restrict sum) {
    for (int64_t k = 0; k < H; k++) sum[k] = x[k] + gate[k] * (number(y, k, bf16) + bias[k]);
}

/* sum = x + gate (y + bias) where y is given, else x itself; then, where scale is given,
   normed = (1 + scale) (sum - mean) r + shift, r = 1 / sqrt(variance + eps), moments = [mean, r] of each atom. */
void add_norm(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, const float *x,
              const void *y, const float *bias, const float *gate, const float *shift, const float *scale,
              int64_t stride, float eps, float *sum, void *normed, float *moments) {
    if (y) zero_rows(sum, ptr[M], A, H, 0);
    if (scale) zero_rows(normed, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        float value[H];
        FOR_EACH_ATOM {
            const float *sum_i = x + i * H;
            if (y) {
                IN_EITHER(bf16, gated_sum, H, sum_i, row(y, i, H, bf16), bias, gate + m * stride, sum + i * H);
                sum_i = sum + i * H;
            }
            if (!scale) continue;
            const float *shift_m = shift + m * stride, *scale_m = scale + m * stride;
            float mean = total(sum_i, H) / H;
            for (int64_t k = 0; k < H; k++) value[k] = sum_i[k] - mean;
            float r = 1 / sqrtf(dot(value, value, H) / H + eps);
            for (int64_t k = 0; k < H; k++) value[k] = (1 + scale_m[k]) * value[k] * r + shift_m[k];
            store(value, normed, i * H, H, bf16);
            moments[2 * i] = mean;
            moments[2 * i + 1] = r;
        }
    }
}

INLINE void norm_gradient(int64_t bf16, int64_t H, const float *restrict sum, const float *restrict moments,
                          const float *restrict scale, const void *restrict grad, float *restrict of_shift,
                          float *restrict of_scale, float *restrict of_sum) {
    float g[H], normed[H], mean = moments[0], r = moments[1], along_one = 0, along_normed = 0;
#pragma omp simd reduction(+ : along_one, along_normed)
    for (int64_t k = 0; k < H; k++) {
        float of_normed = number(grad, k, bf16);
        normed[k] = (sum[k] - mean) * r;
        of_shift[k] += of_normed;
        of_scale[k] += of_normed * normed[k];
        g[k] = of_normed * (1 + scale[k]);
        along_one += g[k];
        along_normed += g[k] * normed[k];
    }
    along_one /= H;
    along_normed /= H;
    for (int64_t k = 0; k < H; k++) of_sum[k] += r * (g[k] - along_one - normed[k] * along_normed);
}

INLINE void gated_gradient(int64_t bf16, int64_t H, const void *restrict y, const float *restrict bias,
                           const float *restrict gate, const float *restrict of_sum, float *restrict of_y,
                           float *restrict of_bias, float *restrict of_gate) {
    for (int64_t k = 0; k < H; k++) {
        of_gate[k] += of_sum[k] * (number(y, k, bf16) + bias[k]);
        of_y[k] = of_sum[k] * gate[k];
        of_bias[k] += of_y[k];
    }
}

/* Gradients of the sum, shift and scale from that of `normed`, and of y, bias and gate from that of the sum. `beside`,
   where it is given, is what the sum has from elsewhere, and all that it has without a scale; grad_sum may be the same
   array. */
void add_norm_gradient(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16,
                       const void *y, const float *bias, const float *gate, const float *scale, int64_t stride,
                       const float *sum, const float *moments, const void *grad, const float *beside, float *grad_sum,
                       void *grad_y, float *grad_bias, int64_t apart, float *grad_gate, float *grad_shift,
                       float *grad_scale, int64_t grad_stride) {
    zero_rows(grad_sum, ptr[M], A, H, 0);
    if (y) zero_rows(grad_y, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        float of_sum[H], of_y[H];
        int64_t at = m * stride, grad_at = m * grad_stride;
        if (y) memset(grad_gate + grad_at, 0, sizeof of_y);
        if (scale) memset(grad_shift + grad_at, 0, sizeof of_y);
        if (scale) memset(grad_scale + grad_at, 0, sizeof of_y);
        FOR_EACH_ATOM { /* in two loops: in one, more rows at once would come from memory */
            if (beside)
                memcpy(of_sum, beside + i * H, sizeof of_sum);
            else
                memset(of_sum, 0, sizeof of_sum);
            if (scale)
                IN_EITHER(bf16, norm_gradient, H, sum + i * H, moments + 2 * i, scale + at, row(grad, i, H, bf16),
                          grad_shift + grad_at, grad_scale + grad_at, of_sum);
            memcpy(grad_sum + i * H, of_sum, sizeof of_sum);
        }
        if (!y) continue;
        FOR_EACH_ATOM {
            IN_EITHER(bf16, gated_gradient, H, row(y, i, H, bf16), bias, gate + at, grad_sum + i * H, of_y,
                      grad_bias + THREAD * apart, grad_gate + grad_at);
            store(of_y, grad_y, i * H, H, bf16);
        }
    }
}

INLINE void swiglu_of(int64_t bf16, int64_t K, const void *restrict uv, const float *restrict bias,
                      float *restrict value) {
    for (int64_t k = 0; k < K; k++) {
        float u = number(uv, k, bf16) + bias[k], v = number(uv, K + k, bf16) + bias[K + k];
        value[k] = u * sigmoid(u) * v;
    }
}

/* out = SiLU(u) v for A rows [u, v] of 2 K, to which bias is added. */
void swiglu(int64_t threads, int64_t A, int64_t K, int64_t bf16, const void *uv, const float *bias, void *out) {
    ON_THREADS_IN_RUNS
    for (int64_t i = 0; i < A; i++) {
        float value[K];
        IN_EITHER(bf16, swiglu_of, K, row(uv, i, 2 * K, bf16), bias, value);
        store(value, out, i * K, K, bf16);
    }
}

INLINE void swiglu_gradient_of(int64_t bf16, int64_t K, const void *restrict uv, const float *restrict bias,
                               const void *restrict grad, float *restrict of_uv, float *restrict of_bias) {
    for (int64_t k = 0; k < K; k++) {
        float u = number(uv, k, bf16) + bias[k], v = number(uv, K + k, bf16) + bias[K + k];
        float g = number(grad, k, bf16), s = sigmoid(u), silu = u * s;
        of_uv[k] = g * v * (s + silu * (1 - s));
        of_uv[K + k] = g * silu;
        of_bias[k] += of_uv[k];
        of_bias[K + k] += of_uv[K + k];
    }
}

/* Gradients of [u, v] and bias from that of `swiglu`'s result. */
void swiglu_gradient(int64_t threads, int64_t A, int64_t K, int64_t bf16, const void *uv, const float *bias,
                     const void *grad, void *grad_uv, float *grad_bias, int64_t apart) {
    ON_THREADS_IN_RUNS
    for (int64_t i = 0; i < A; i++) {
        float of_uv[2 * K];
        IN_EITHER(bf16, swiglu_gradient_of, K, row(uv, i, 2 * K, bf16), bias, row(grad, i, K, bf16), of_uv,
                  grad_bias + THREAD * apart);
        store(of_uv, grad_uv, i * 2 * K, 2 * K, bf16);
    }
}

/* Rows of matrices below are padded to a multiple of LANES, half of AVX-512's vectors; what is in the padding reaches
   nothing else. */
#define LANES 8
#define FOR_EACH_LANE _Pragma("omp simd") for (int64_t l = 0; l < LANES; l++) /* else gcc makes scalars of them */
#ifdef __AVX512F__
#define WHOLE (2 * LANES)
#else
#define WHOLE LANES /* gcc would keep in memory what no register holds */
#endif
typedef float Half __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Whole __attribute__((vector_size(4 * WHOLE), aligned(4)));

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Up to four rows of `product`, as many columns as fit a vector; they share what is loaded from b. */
#define ROWS_OF_PRODUCT(NAME, Vector)                                                                                  \
    INLINE void NAME(int64_t rows, float *c, const float *a, int64_t a_row, int64_t a_column, const float *b,          \
                     int64_t k, int64_t m) {                                                                           \
        Vector sum[4] = {0};                                                                                           \
        for (int64_t l = 0; l < k; l++, a += a_column, b += m)                                                         \
            for (int64_t r = 0; r < rows; r++) sum[r] += a[r * a_row] * *(const Vector *)b;                            \
        for (int64_t r = 0; r < rows; r++) *(Vector *)(c + r * m) = sum[r];                                            \
    }
ROWS_OF_PRODUCT(rows_of_whole, Whole)
ROWS_OF_PRODUCT(rows_of_half, Half)

/* c [n, m] = a b for b [k, m], where a has its rows and columns at these distances and m is padded. */
static void product(float *c, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t n, int64_t k,
                    int64_t m) {
    for (int64_t j = 0; j < m; j += WHOLE)
        for (int64_t i = 0; i < n; i += 4) {
            float *c_i = c + i * m + j;
            const float *a_i = a + i * a_row;
            int64_t rows = n - i < 4 ? n - i : 4;
            if (m - j >= WHOLE)
                switch (rows) { /* a number that the compiler knows */
                case 1: rows_of_whole(1, c_i, a_i, a_row, a_column, b + j, k, m); break;
                case 2: rows_of_whole(2, c_i, a_i, a_row, a_column, b + j, k, m); break;
                case 3: rows_of_whole(3, c_i, a_i, a_row, a_column, b + j, k, m); break;
                default: rows_of_whole(4, c_i, a_i, a_row, a_column, b + j, k, m);
                }
            else
                switch (rows) {
                case 1: rows_of_half(1, c_i, a_i, a_row, a_column, b + j, k, m); break;
                case 2: rows_of_half(2, c_i, a_i, a_row, a_column, b + j, k, m); break;
                case 3: rows_of_half(3, c_i, a_i, a_row, a_column, b + j, k, m); break;
                default: rows_of_half(4, c_i, a_i, a_row, a_column, b + j, k, m);
                }
        }
}

/* Thrice it transposes: of 3 bits of a row's number and 3 of a lane's, the first becomes the last. */
static inline void interleave(Half x[LANES]) {
    Half to[LANES];
    for (int64_t l = 0; l < LANES / 2; l++) {
        Half a = x[l], b = x[l + LANES / 2];
        to[2 * l] = (Half){a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]};
        to[2 * l + 1] = (Half){a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
    }
    memcpy(x, to, sizeof to);
}

/* to [d, n] from [n, d], for d and rows of both as padded; rows after n are those of whatever comes next. */
static void transpose(const float *from, int64_t n, int64_t d, float *to) {
    int64_t N = padded(n), D = padded(d);
    for (int64_t i = 0; i < N; i += LANES)
        for (int64_t c = 0; c < D; c += LANES) {
            Half square[LANES];
            for (int64_t l = 0; l < LANES; l++) square[l] = *(const Half *)(from + (i + l) * D + c);
            for (int64_t time = 0; time < 3; time++) interleave(square);
            for (int64_t l = 0; l < LANES; l++) *(Half *)(to + (c + l) * N + i) = square[l];
        }
}

/* LANES numbers from place `at`, or K where there are fewer. */
static inline Half few(const void *from, int64_t at, int64_t K, int64_t bf16) {
    if (!bf16 && K >= LANES) return *(const Half *)((const float *)from + at);
    float value[LANES] = {0};
    if (K < LANES)
        load(from, at, K, bf16, value);
    else
        load(from, at, LANES, bf16, value); /* a number that the compiler knows */
    return *(Half *)value;
}

/* n rows of n_heads d numbers from row `start`, and where there is one their bias, into a matrix [n, d] of each head with
   rows padded; and back, where they are added to the gradient of a bias. Rows are read and written from end to end: of
   pieces of rows, head by head, each would be waited for. */
static void load_heads(const void *from, const float *bias, int64_t start, int64_t n, int64_t n_heads, int64_t d,
                       int64_t bf16, float *to) {
    int64_t at = start * n_heads * d, D = padded(d);
    for (int64_t i = 0; i < n; i++, to += D)
        for (int64_t head = 0; head < n_heads; head++, at += d)
            for (int64_t c = 0; c < d; c += LANES) {
                Half value = few(from, at + c, d - c, bf16);
                if (bias) value += few(bias, head * d + c, d - c, 0);
                *(Half *)(to + head * n * D + c) = value;
            }
}

static void store_heads(const float *from, float *of_bias, int64_t start, int64_t n, int64_t n_heads, int64_t d,
                        int64_t bf16, void *to) {
    int64_t H = n_heads * d, D = padded(d);
    float whole[H + LANES]; /* a head's padding lies where the next head comes to lie */
    for (int64_t i = 0; i < n; i++, from += D) {
        for (int64_t head = 0; head < n_heads; head++)
            for (int64_t c = 0; c < d; c += LANES)
                *(Half *)(whole + head * d + c) = *(const Half *)(from + head * n * D + c);
        if (of_bias) add(of_bias, 1, whole, H);
        store(whole, to, (start + i) * H, H, bf16);
    }
}

/* softmax over j of factor p[j, i]; so what is summed over j needs no sum along a row. */
static void softmax(float *p, int64_t n, int64_t N, float factor) {
    for (int64_t i = 0; i < N; i += LANES, p += LANES) {
        float largest[LANES], sum[LANES] = {0};
        memcpy(largest, p, sizeof largest);
        for (int64_t j = 1; j < n; j++)
            FOR_EACH_LANE largest[l] = p[j * N + l] > largest[l] ? p[j * N + l] : largest[l];
        for (int64_t j = 0; j < n; j++)
            FOR_EACH_LANE {
                p[j * N + l] = exponential(factor * (p[j * N + l] - largest[l]));
                sum[l] += p[j * N + l];
            }
        FOR_EACH_LANE sum[l] = 1 / sum[l];
        for (int64_t j = 0; j < n; j++)
            FOR_EACH_LANE p[j * N + l] *= sum[l];
    }
}

/* out = sum_j p_ij v_j within each molecule, for each head; qkv has rows of 3 H, out of H. `weights` has room for all p,
   as [j, i], molecule by molecule and head by head; before[m] are those of one head in molecules before m. scratch: for
   each thread `room` numbers, n (3 H + d) for the largest molecule, where n, d and each head's part of H are padded. */
void attention(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, int64_t n_heads,
               const void *qkv, const float *bias, void *out, float *weights, const int64_t *before,
               float *scratch, int64_t room) {
    int64_t d = H / n_heads, D = padded(d);
    float factor = 1 / sqrtf((float)d);
    zero_rows(out, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t start = ptr[m], n = ptr[m + 1] - start, N = padded(n), of_part = n_heads * n * D;
        float *q = scratch + THREAD * room, *k = q + of_part, *v = k + of_part, *turned = v + of_part;
        float *p = weights + n_heads * before[m];
        load_heads(qkv, bias, start, n, 3 * n_heads, d, bf16, q);
        for (int64_t at = 0; at < of_part; at += n * D, p += n * N) {
            transpose(q + at, n, d, turned);
            product(p, k + at, D, 1, turned, n, d, N);
            softmax(p, n, N, factor);
            product(q + at, p, 1, N, v + at, n, n, D); /* in the place of q */
        }
        store_heads(q, NULL, start, n, n_heads, d, bf16, out);
    }
}

/* s = factor p (s - sum_j p s), of the scores from that of p; both [j, i]. */
static void scores_gradient(const float *p, int64_t n, int64_t N, float factor, float *s) {
    for (int64_t i = 0; i < N; i += LANES, p += LANES, s += LANES) {
        float mean[LANES] = {0};
        for (int64_t j = 0; j < n; j++)
            FOR_EACH_LANE mean[l] += p[j * N + l] * s[j * N + l];
        for (int64_t j = 0; j < n; j++)
            FOR_EACH_LANE s[j * N + l] = factor * p[j * N + l] * (s[j * N + l] - mean[l]);
    }
}

/* Gradients of [q, k, v] and bias from that of `attention`'s result and its weights. scratch: for each thread `room`
   numbers, n (4 H + d + n) for the largest molecule, padded as there. */
void attention_gradient(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, int64_t n_heads,
                        const void *qkv, const float *bias, const float *weights, const int64_t *before,
                        const void *grad, void *grad_qkv, float *grad_bias, int64_t apart, float *scratch, int64_t room) {
    int64_t d = H / n_heads, D = padded(d);
    float factor = 1 / sqrtf((float)d);
    zero_rows(grad_qkv, ptr[M], A, 3 * H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t start = ptr[m], n = ptr[m + 1] - start, N = padded(n), of_part = n_heads * n * D;
        float *q = scratch + THREAD * room, *k = q + of_part, *v = k + of_part, *g = v + of_part;
        float *turned = g + of_part, *s = turned + D * N;
        const float *p = weights + n_heads * before[m];
        load_heads(qkv, bias, start, n, 3 * n_heads, d, bf16, q);
        load_heads(grad, NULL, start, n, n_heads, d, bf16, g);
        for (int64_t at = 0; at < of_part; at += n * D, p += n * N) {
            transpose(g + at, n, d, turned);
            product(s, v + at, D, 1, turned, n, d, N);
            scores_gradient(p, n, N, factor, s);
            product(v + at, p, N, 1, g + at, n, n, D); /* each in the place of what is needed no more */
            product(g + at, s, 1, N, k + at, n, n, D);
            product(k + at, s, N, 1, q + at, n, n, D);
            memcpy(q + at, g + at, n * D * sizeof(float));
        }
        store_heads(q, grad_bias + THREAD * apart, start, n, 3 * n_heads, d, bf16, grad_qkv);
    }
}
