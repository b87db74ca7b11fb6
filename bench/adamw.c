/* What bench/adamw.py does with all weights of a model at once. The numbers of all arrays, one after the other, are dealt
   out to `threads` threads of OpenMP in equal runs. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define ON_THREADS _Pragma("omp parallel for schedule(static, 1) num_threads(threads)")

typedef struct {
    const float *gradient;
    float *weight, *mean, *square, *largest, *average; /* `largest` is NULL without amsgrad */
    int64_t size;
} Array;

static int64_t total(const Array *arrays, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += arrays[i].size;
    return sum;
}

/* A thread's numbers of an array that comes after `first` others: from `from` to `to`. */
typedef struct {
    int64_t from, to;
} Run;

static Run run_of(int64_t t, int64_t threads, int64_t all, int64_t first, int64_t size) {
    int64_t begin = all / threads * t - first, end = (t + 1 < threads ? all / threads * (t + 1) : all) - first;
    return (Run){begin > 0 ? begin : 0, end < size ? end : size};
}

/* The sum of all gradients' squares: a sum of each thread. */
void squares(int64_t threads, int64_t n, const Array *arrays, double *sums) {
    int64_t all = total(arrays, n);
    ON_THREADS
    for (int64_t t = 0; t < threads; t++) {
        double sum = 0;
        int64_t first = 0;
        for (int64_t i = 0; i < n; first += arrays[i++].size) {
            const float *g = arrays[i].gradient;
            Run run = run_of(t, threads, all, first, arrays[i].size);
            for (int64_t start = run.from; start < run.to; start += 4096) { /* few enough for float32 */
                int64_t stop = start + 4096 < run.to ? start + 4096 : run.to;
                float of_some = 0;
#pragma omp simd reduction(+ : of_some)
                for (int64_t k = start; k < stop; k++) of_some += g[k] * g[k];
                sum += of_some;
            }
        }
        sums[t] = sum;
    }
}

typedef struct {
    float factor, kept, rate, root, towards_mean, square_kept, towards_square, eps, towards;
} Numbers;

/* For n numbers of an array. */
static void step_of(const Numbers *c, int64_t n, const float *restrict gradient, float *restrict weight,
                    float *restrict mean, float *restrict square, float *restrict largest, float *restrict average) {
    float r = 1 / c->root;
    for (int64_t k = 0; k < n; k++) {
        float g = c->factor * gradient[k];
        mean[k] += c->towards_mean * (g - mean[k]);
        square[k] = c->square_kept * square[k] + c->towards_square * g * g;
        if (largest) largest[k] = square[k] > largest[k] ? square[k] : largest[k];
        weight[k] = c->kept * weight[k] - c->rate * mean[k] / (sqrtf((largest ? largest : square)[k]) * r + c->eps);
        average[k] += c->towards * (weight[k] - average[k]);
    }
}

/* AdamW's step on gradients times a factor, at rates and with roots of the square's correction for each array;
   average <- average + towards (weight - average). */
void step(int64_t threads, int64_t n, const Array *arrays, const float *factor, const float *rates, const float *roots,
          float kept, float towards_mean, float square_kept, float towards_square, float eps, float towards) {
    int64_t all = total(arrays, n);
    ON_THREADS
    for (int64_t t = 0; t < threads; t++) {
        int64_t first = 0;
        for (int64_t i = 0; i < n; first += arrays[i++].size) {
            const Array *x = arrays + i;
            const Numbers numbers = {*factor, kept, rates[i], roots[i], towards_mean, square_kept, towards_square, eps, towards};
            Run run = run_of(t, threads, all, first, x->size);
            int64_t at = run.from;
            if (at < run.to)
                step_of(&numbers, run.to - at, x->gradient + at, x->weight + at, x->mean + at, x->square + at,
                        x->largest ? x->largest + at : NULL, x->average + at);
        }
    }
}
