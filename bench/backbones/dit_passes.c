/* What bench/backbones/dit_passes.py does between matrix products: each function reads and writes its rows once, on
   `threads` threads of OpenMP, the ones that torch uses. Formulas and names are those of the Python file. Rows are atoms,
   ptr[m] to ptr[m + 1] those of molecule m of M; rows after the last molecule's, up to A, are padding and made zero. Rows
   of modulations have `stride` numbers, of which H count, those of their gradients `grad_stride`. What a linear layer made
   lacks its bias, which is added here; gradients of biases are added to a row of each thread, rows `apart` from one
   another. */

#include "rows.h"

#define ON_THREADS_IN_RUNS _Pragma("omp parallel for schedule(static) num_threads(threads)")
#define FOR_EACH_ATOM for (int64_t i = ptr[m]; i < ptr[m + 1]; i++)

/* Rows of K numbers from row `start` to row A. */
static void zero_rows(void *rows, int64_t start, int64_t A, int64_t K, int64_t bf16) {
    int64_t size = K * (bf16 ? sizeof(uint16_t) : sizeof(float));
    memset((char *)rows + start * size, 0, (A - start) * size);
}

static inline float total(const float *x, int64_t K) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; k++) sum += x[k];
    return sum;
}

/* out = (1 + scale) (x - mean) r + shift, r = 1 / sqrt(variance + eps); moments = [mean, r] of each atom. */
void modulate(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, const float *x,
              const float *shift, const float *scale, int64_t stride, float eps, void *out, float *moments) {
    zero_rows(out, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        const float *shift_m = shift + m * stride, *scale_m = scale + m * stride;
        float value[H];
        FOR_EACH_ATOM {
            const float *x_i = x + i * H;
            float mean = total(x_i, H) / H;
            for (int64_t k = 0; k < H; k++) value[k] = x_i[k] - mean;
            float r = 1 / sqrtf(dot(value, value, H) / H + eps);
            for (int64_t k = 0; k < H; k++) value[k] = (1 + scale_m[k]) * value[k] * r + shift_m[k];
            store(value, out, i * H, H, bf16);
            moments[2 * i] = mean;
            moments[2 * i + 1] = r;
        }
    }
}

/* Gradients of x, shift and scale from that of `modulate`'s result; `beside`, where it is given, is what x has from
   elsewhere. */
void modulate_gradient(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16,
                       const float *x, const float *scale, int64_t stride, const float *moments, const void *grad,
                       const float *beside, float *grad_x, float *grad_shift, float *grad_scale, int64_t grad_stride) {
    zero_rows(grad_x, ptr[M], A, H, 0);
    ON_THREADS
    FOR_EACH_MOLECULE {
        const float *scale_m = scale + m * stride;
        float *restrict of_shift = grad_shift + m * grad_stride, *restrict of_scale = grad_scale + m * grad_stride;
        float g[H], normed[H];
        memset(of_shift, 0, sizeof g);
        memset(of_scale, 0, sizeof g);
        FOR_EACH_ATOM {
            const float *x_i = x + i * H;
            float *restrict of_x = grad_x + i * H;
            float mean = moments[2 * i], r = moments[2 * i + 1];
            load(grad, i * H, H, bf16, g);
            for (int64_t k = 0; k < H; k++) {
                normed[k] = (x_i[k] - mean) * r;
                of_shift[k] += g[k];
                of_scale[k] += g[k] * normed[k];
                g[k] *= 1 + scale_m[k];
            }
            float along_one = total(g, H) / H, along_normed = dot(g, normed, H) / H;
            for (int64_t k = 0; k < H; k++) of_x[k] = r * (g[k] - along_one - normed[k] * along_normed);
            if (beside) add(of_x, 1, beside + i * H, H);
        }
    }
}

/* out = x + gate (y + bias). */
void gated_sum(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, const float *x,
               const void *y, const float *bias, const float *gate, int64_t stride, float *out) {
    zero_rows(out, ptr[M], A, H, 0);
    ON_THREADS
    FOR_EACH_MOLECULE {
        const float *gate_m = gate + m * stride;
        float y_i[H];
        FOR_EACH_ATOM {
            const float *x_i = x + i * H;
            float *restrict out_i = out + i * H;
            load(y, i * H, H, bf16, y_i);
            for (int64_t k = 0; k < H; k++) out_i[k] = x_i[k] + gate_m[k] * (y_i[k] + bias[k]);
        }
    }
}

/* Gradients of y, bias and gate from that of `gated_sum`'s result. */
void gated_sum_gradient(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16,
                        const void *y, const float *bias, const float *gate, int64_t stride, const float *grad,
                        void *grad_y, float *grad_bias, int64_t apart, float *grad_gate, int64_t grad_stride) {
    zero_rows(grad_y, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        const float *gate_m = gate + m * stride;
        float *restrict of_gate = grad_gate + m * grad_stride, *restrict of_bias = grad_bias + THREAD * apart;
        float y_i[H], g[H];
        memset(of_gate, 0, sizeof g);
        FOR_EACH_ATOM {
            const float *grad_i = grad + i * H;
            load(y, i * H, H, bf16, y_i);
            for (int64_t k = 0; k < H; k++) {
                of_gate[k] += grad_i[k] * (y_i[k] + bias[k]);
                g[k] = grad_i[k] * gate_m[k];
                of_bias[k] += g[k];
            }
            store(g, grad_y, i * H, H, bf16);
        }
    }
}

/* out = SiLU(u) v for A rows [u, v] of 2 K, to which bias is added. */
void swiglu(int64_t threads, int64_t A, int64_t K, int64_t bf16, const void *uv, const float *bias, void *out) {
    ON_THREADS_IN_RUNS
    for (int64_t i = 0; i < A; i++) {
        float both[2 * K], value[K];
        load(uv, i * 2 * K, 2 * K, bf16, both);
        add(both, 1, bias, 2 * K);
        for (int64_t k = 0; k < K; k++) value[k] = both[k] * sigmoid(both[k]) * both[K + k];
        store(value, out, i * K, K, bf16);
    }
}

/* Gradients of [u, v] and bias from that of `swiglu`'s result. */
void swiglu_gradient(int64_t threads, int64_t A, int64_t K, int64_t bf16, const void *uv, const float *bias,
                     const void *grad, void *grad_uv, float *grad_bias, int64_t apart) {
    ON_THREADS_IN_RUNS
    for (int64_t i = 0; i < A; i++) {
        float both[2 * K], g[K], of_both[2 * K];
        load(uv, i * 2 * K, 2 * K, bf16, both);
        add(both, 1, bias, 2 * K);
        load(grad, i * K, K, bf16, g);
        for (int64_t k = 0; k < K; k++) {
            float s = sigmoid(both[k]), silu = both[k] * s;
            of_both[k] = g[k] * both[K + k] * (s + silu * (1 - s));
            of_both[K + k] = g[k] * silu;
        }
        add(grad_bias + THREAD * apart, 1, of_both, 2 * K);
        store(of_both, grad_uv, i * 2 * K, 2 * K, bf16);
    }
}

/* Rows of matrices below are padded to a multiple of LANES, half of AVX-512's vectors. */
#define LANES 8
typedef float Half __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Whole __attribute__((vector_size(8 * LANES), aligned(4)));

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Up to four rows of `product`, as many columns as fit a vector; they share what is loaded from b. */
#define ROWS_OF_PRODUCT(NAME, Vector)                                                                                  \
    static inline __attribute__((always_inline)) void NAME(int64_t rows, float *c, const float *a, int64_t a_row,      \
                                                           int64_t a_column, const float *b, int64_t k, int64_t m) {   \
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
    for (int64_t j = 0; j < m; j += 2 * LANES)
        for (int64_t i = 0; i < n; i += 4) {
            float *c_i = c + i * m + j;
            const float *a_i = a + i * a_row;
            int64_t rows = n - i < 4 ? n - i : 4;
            if (m - j >= 2 * LANES)
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

/* to [columns, rows], padded with zeros, from [rows, columns] with rows of `stride`. */
static void transpose(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
    int64_t width = padded(rows);
    for (int64_t c = 0; c < columns; c++) {
        for (int64_t r = 0; r < rows; r++) to[c * width + r] = from[r * stride + c];
        for (int64_t r = rows; r < width; r++) to[c * width + r] = 0;
    }
}

/* n rows of n_heads d numbers from row `start`, and where there is one their bias, into a matrix [n, d] of each head with
   rows padded with zeros; and back, where they are added to the gradient of a bias. Rows are read and written from end
   to end: of pieces of rows, head by head, each would be waited for. */
static void load_heads(const void *from, const float *bias, int64_t start, int64_t n, int64_t n_heads, int64_t d,
                       int64_t bf16, float *to) {
    int64_t H = n_heads * d;
    float row[H];
    for (int64_t i = 0; i < n; i++) {
        load(from, (start + i) * H, H, bf16, row);
        if (bias) add(row, 1, bias, H);
        for (int64_t head = 0; head < n_heads; head++) {
            float *of_head = to + (head * n + i) * padded(d);
            memcpy(of_head, row + head * d, d * sizeof(float));
            memset(of_head + d, 0, (padded(d) - d) * sizeof(float));
        }
    }
}

static void store_heads(const float *from, float *of_bias, int64_t start, int64_t n, int64_t n_heads, int64_t d,
                        int64_t bf16, void *to) {
    int64_t H = n_heads * d;
    float row[H];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t head = 0; head < n_heads; head++)
            memcpy(row + head * d, from + (head * n + i) * padded(d), d * sizeof(float));
        if (of_bias) add(of_bias, 1, row, H);
        store(row, to, (start + i) * H, H, bf16);
    }
}

/* softmax over j of q_i k_j / sqrt(d) as p[j, i], so that what is summed over j needs no sum along a row; the padding of
   a row is a query of zeros. `turned` has room for d rows, largest and sum for one. */
static void weights_of(const float *q, const float *k, int64_t n, int64_t d, float *turned, float *restrict largest,
                       float *restrict sum, float *restrict p) {
    int64_t N = padded(n);
    float factor = 1 / sqrtf((float)d);
    transpose(q, padded(d), n, d, turned);
    product(p, k, padded(d), 1, turned, n, d, N);
    memcpy(largest, p, N * sizeof(float));
    memset(sum, 0, N * sizeof(float));
    for (int64_t j = 1; j < n; j++)
        for (int64_t i = 0; i < N; i++) largest[i] = p[j * N + i] > largest[i] ? p[j * N + i] : largest[i];
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < N; i++) {
            p[j * N + i] = exponential(factor * (p[j * N + i] - largest[i]));
            sum[i] += p[j * N + i];
        }
    for (int64_t i = 0; i < N; i++) sum[i] = 1 / sum[i];
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < N; i++) p[j * N + i] *= sum[i];
}

/* out = sum_j p_ij v_j within each molecule, for each head; qkv has rows of 3 H, out of H. `weights` has room for all p,
   molecule by molecule and head by head; before[m] are those of one head in molecules before m. scratch: for each thread
   `room` numbers, n (4 H + d + 2) for the largest molecule, where n, d and each head's part of H are padded. */
void attention(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, int64_t n_heads,
               const void *qkv, const float *bias, void *out, float *weights, const int64_t *before,
               float *scratch, int64_t room) {
    int64_t d = H / n_heads, D = padded(d);
    zero_rows(out, ptr[M], A, H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t start = ptr[m], n = ptr[m + 1] - start, N = padded(n), of_part = n_heads * n * D;
        float *q = scratch + THREAD * room, *k = q + of_part, *v = k + of_part, *o = v + of_part, *turned = o + of_part;
        float *largest = turned + d * N, *sum = largest + N, *p = weights + n_heads * before[m];
        load_heads(qkv, bias, start, n, 3 * n_heads, d, bf16, q);
        for (int64_t at = 0; at < of_part; at += n * D, p += n * N) {
            weights_of(q + at, k + at, n, d, turned, largest, sum, p);
            product(o + at, p, 1, N, v + at, n, n, D);
        }
        store_heads(o, NULL, start, n, n_heads, d, bf16, out);
    }
}

/* s = factor p (s - sum_j p s), of the scores from that of p; both [j, i], `mean` has room for a row. */
static void scores_gradient(const float *restrict p, int64_t n, int64_t N, float factor, float *restrict mean,
                            float *restrict s) {
    memset(mean, 0, N * sizeof(float));
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < N; i++) mean[i] += p[j * N + i] * s[j * N + i];
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < N; i++) s[j * N + i] = factor * p[j * N + i] * (s[j * N + i] - mean[i]);
}

/* Gradients of [q, k, v] and bias from that of `attention`'s result and its weights. scratch: for each thread `room`
   numbers, n (7 H + d + n + 1) for the largest molecule, padded as there. */
void attention_gradient(int64_t threads, int64_t M, const int64_t *ptr, int64_t A, int64_t H, int64_t bf16, int64_t n_heads,
                        const void *qkv, const float *bias, const float *weights, const int64_t *before,
                        const void *grad, void *grad_qkv, float *grad_bias, int64_t apart, float *scratch, int64_t room) {
    int64_t d = H / n_heads, D = padded(d);
    float factor = 1 / sqrtf((float)d);
    zero_rows(grad_qkv, ptr[M], A, 3 * H, bf16);
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t start = ptr[m], n = ptr[m + 1] - start, N = padded(n), of_part = n_heads * n * D;
        float *q = scratch + THREAD * room, *k = q + of_part, *v = k + of_part;
        float *of_q = v + of_part, *of_k = of_q + of_part, *of_v = of_k + of_part;
        float *g = of_v + of_part, *turned = g + of_part, *s = turned + d * N, *mean = s + n * N;
        const float *p = weights + n_heads * before[m];
        load_heads(qkv, bias, start, n, 3 * n_heads, d, bf16, q);
        load_heads(grad, NULL, start, n, n_heads, d, bf16, g);
        for (int64_t at = 0; at < of_part; at += n * D, p += n * N) {
            product(of_v + at, p, N, 1, g + at, n, n, D);
            transpose(g + at, D, n, d, turned);
            product(s, v + at, D, 1, turned, n, d, N);
            scores_gradient(p, n, N, factor, mean, s);
            product(of_q + at, s, 1, N, k + at, n, n, D);
            product(of_k + at, s, N, 1, q + at, n, n, D);
        }
        store_heads(of_q, grad_bias + THREAD * apart, start, n, 3 * n_heads, d, bf16, grad_qkv);
    }
}
