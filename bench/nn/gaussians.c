/* What bench/nn/gaussians.py does on a CPU, in one pass over the pairs of each molecule, on `threads` threads of
   OpenMP, the ones that torch uses. Formulas and names are those of the Python file. ptr[m] to ptr[m + 1] are the atoms of
   molecule m of M, and pairs[m] is the first of its pairs (i, j). WIDTH is the number of Gaussians. */

#include "rows.h"

enum { K = WIDTH };

#define FOR_EACH_ATOM for (int64_t i = ptr[m]; i < ptr[m + 1]; i++)
#define FOR_EACH_PARTNER for (int64_t j = 0, p = pairs[m] + (i - ptr[m]) * n; j < n; j++, p++)

/* exp(-s^2), or e^-60 where that is more: numbers next to zero cost a CPU ten times as long. */
static inline float gaussian(float s) { return exponential(s * s > 60 ? -60 : -s * s); }

void mean_gaussians(int64_t threads, int64_t M, const int64_t *ptr, const int64_t *pairs, const float *d,
                    const float *mu, const float *r, float *out) {
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t n = ptr[m + 1] - ptr[m];
        FOR_EACH_ATOM {
            float sum[K];
            memset(sum, 0, sizeof sum);
            FOR_EACH_PARTNER {
                for (int64_t k = 0; k < K; k++) sum[k] += gaussian((d[p] - mu[k]) * r[k]);
            }
            for (int64_t k = 0; k < K; k++) out[i * K + k] = sum[k] / n;
        }
    }
}

/* With w = s G grad / N: gradient of d, where it is wanted, and for each molecule the sums of w and of w s. */
void mean_gaussians_gradient(int64_t threads, int64_t M, const int64_t *ptr, const int64_t *pairs, const float *d,
                             const float *mu, const float *r, const float *grad, float *grad_d, float *sums) {
    ON_THREADS
    FOR_EACH_MOLECULE {
        int64_t n = ptr[m + 1] - ptr[m];
        float *restrict sum_w = sums + 2 * m * K, *restrict sum_ws = sums + (2 * m + 1) * K;
        memset(sum_w, 0, K * sizeof(float));
        memset(sum_ws, 0, K * sizeof(float));
        FOR_EACH_ATOM {
            float g[K];
            for (int64_t k = 0; k < K; k++) g[k] = grad[i * K + k] / n;
            FOR_EACH_PARTNER {
                float w[K];
                for (int64_t k = 0; k < K; k++) {
                    float s = (d[p] - mu[k]) * r[k];
                    w[k] = s * gaussian(s) * g[k];
                    sum_w[k] += w[k];
                    sum_ws[k] += w[k] * s;
                }
                if (grad_d) grad_d[p] = -2 * dot(w, r, K);
            }
        }
    }
}
