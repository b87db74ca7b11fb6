/* What bench/kernels/pair_mlp.py does between matrix products, on the pairs of one chunk: each function reads and
   writes its rows once, on the thread that calls it. Formulas and names are those of the Python file. Operands and
   results of matrix products are `hidden`, `second`, `g` and `moved`. The network's WIDTH is known to the compiler, so
   that rows stay in registers. */

#include "rows.h"

enum { K = WIDTH };

/* b molecules of n atoms, of each of which r atoms i have their pairs here: from atom `row`, partners j from atom
   `partner`. */
typedef struct {
    int64_t row, partner, b, r, n;
} Block;

/* Atoms i of the blocks, and their partners j. Arrays have a row q for each pair that counts, one after the other. */
#define FOR_EACH_ATOM                                                     \
    int64_t q = 0;                                                        \
    for (const Block *block = blocks; block < blocks + n_blocks; block++) \
        for (int64_t row = 0; row < block->b * block->r; row++)
#define ATOM (block->row + row)
#define FIRST_PARTNER (block->partner + row / block->r * block->n)
#define FOR_EACH_PARTNER for (int64_t j = FIRST_PARTNER; j < FIRST_PARTNER + block->n; j++)
#define COUNTS (include_self || j != ATOM)

/* hidden = SiLU(z) and, where it is wanted, slope = SiLU'(z), for z = a_i + b_j + D W; ab holds [a, b] of each atom. */
void first_layer(const Block *blocks, int64_t n_blocks, int64_t include_self, int64_t bf16, const float *ab,
                 const float *D, const float *W, int64_t C, void *hidden, float *slopes) {
    float z[K], value[K];
    FOR_EACH_ATOM {
        const float *a_i = ab + 2 * ATOM * K;
        FOR_EACH_PARTNER {
            if (!COUNTS) continue;
            const float *b_j = ab + (2 * j + 1) * K;
            for (int64_t k = 0; k < K; k++) z[k] = a_i[k] + b_j[k];
            for (int64_t c = 0; c < C; c++) add(z, D[q * C + c], W + c * K, K);
            if (slopes) {
                float *restrict slope = slopes + q * K;
                for (int64_t k = 0; k < K; k++) {
                    float s = sigmoid(z[k]);
                    value[k] = z[k] * s;
                    slope[k] = s + value[k] * (1 - s);
                }
            } else
                for (int64_t k = 0; k < K; k++) value[k] = z[k] * sigmoid(z[k]);
            store(value, hidden, q++ * K, K, bf16);
        }
    }
}

/* e = w m + c for m = SiLU(second + bias). Without `out`: attention = e. With it: attention = sigmoid(e), and out is the
   sum over j of attention m. `m` has room for the partners of one atom, so that all their sigmoids are vector
   instructions: each by itself would be waited for. */
void messages(const Block *blocks, int64_t n_blocks, int64_t include_self, int64_t bf16, const void *second,
              const float *bias, const float *w, float c, float *m, float *attention, float *out) {
    FOR_EACH_ATOM {
        float *restrict m_j = m;
        int64_t first = q;
        FOR_EACH_PARTNER {
            if (!COUNTS) continue;
            load(second, q * K, K, bf16, m_j);
            for (int64_t k = 0; k < K; k++) {
                float z = m_j[k] + bias[k];
                m_j[k] = z * sigmoid(z);
            }
            attention[q++] = dot(m_j, w, K) + c;
            if (out) m_j += K;
        }
        if (!out) continue;
        for (int64_t p = first; p < q; p++) attention[p] = sigmoid(attention[p]);
        float sum[K];
        memset(sum, 0, sizeof sum);
        for (int64_t p = first; p < q; p++) add(sum, attention[p], m + (p - first) * K, K);
        memcpy(out + ATOM * K, sum, sizeof sum);
    }
}

/* g = gradient of second, from the gradient of `messages`' result: of the sums [A, K] where `attention` is given, else of
   e [P]. Adds to the gradients of bias, w and c. `m` and `slopes` have room for the partners of one atom: rows of the
   first loop do not wait for the sums of the second. */
void second_gradient(const Block *blocks, int64_t n_blocks, int64_t include_self, int64_t bf16, const void *second,
                     const float *bias, const float *w, const float *attention, const float *grad, float *m,
                     float *slopes, void *g, float *grad_bias, float *grad_w, float *grad_c) {
    float of_bias[K], of_w[K], of_c = 0;
    memset(of_bias, 0, sizeof of_bias);
    memset(of_w, 0, sizeof of_w);
    FOR_EACH_ATOM {
        const float *grad_i = grad + ATOM * K;
        int64_t first = q;
        FOR_EACH_PARTNER {
            if (!COUNTS) continue;
            float *restrict m_j = m + (q - first) * K, *restrict slope = slopes + (q - first) * K;
            load(second, q++ * K, K, bf16, m_j);
            for (int64_t k = 0; k < K; k++) {
                float z = m_j[k] + bias[k], s = sigmoid(z);
                m_j[k] = z * s;
                slope[k] = s + m_j[k] * (1 - s);
            }
        }
        q = first;
        FOR_EACH_PARTNER {
            if (!COUNTS) continue;
            const float *restrict m_j = m + (q - first) * K, *restrict slope = slopes + (q - first) * K;
            float g_q[K], grad_e;
            if (attention) {
                grad_e = dot(grad_i, m_j, K) * attention[q] * (1 - attention[q]);
                for (int64_t k = 0; k < K; k++) g_q[k] = (attention[q] * grad_i[k] + grad_e * w[k]) * slope[k];
            } else {
                grad_e = grad[q];
                for (int64_t k = 0; k < K; k++) g_q[k] = grad_e * w[k] * slope[k];
            }
            add(of_w, grad_e, m_j, K);
            add(of_bias, 1, g_q, K);
            of_c += grad_e;
            store(g_q, g, q++ * K, K, bf16);
        }
    }
    add(grad_bias, 1, of_bias, K);
    add(grad_w, 1, of_w, K);
    *grad_c += of_c;
}

/* From moved = g W, the gradient of hidden, and its slopes, those of a, b and W (added to) and D (written, where it is
   wanted). */
void first_gradient(const Block *blocks, int64_t n_blocks, int64_t include_self, int64_t bf16, const void *moved,
                    const float *slopes, const float *D, const float *W, int64_t C, float *grad_ab, float *grad_D,
                    float *grad_W) {
    float g[K], sum[K];
    FOR_EACH_ATOM {
        memset(sum, 0, sizeof sum);
        FOR_EACH_PARTNER {
            if (!COUNTS) continue;
            const float *slope = slopes + q * K;
            load(moved, q * K, K, bf16, g);
            for (int64_t k = 0; k < K; k++) g[k] *= slope[k];
            add(sum, 1, g, K);
            add(grad_ab + (2 * j + 1) * K, 1, g, K);
            for (int64_t c = 0; c < C; c++) {
                if (grad_D) grad_D[q * C + c] = dot(g, W + c * K, K);
                add(grad_W + c * K, D[q * C + c], g, K);
            }
            q++;
        }
        add(grad_ab + 2 * ATOM * K, 1, sum, K);
    }
}
