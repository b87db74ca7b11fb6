/* What bench/kernels/adamw.py does with all weights of a model at once. The numbers of all arrays, one after the other, are dealt
   out to `threads` threads of OpenMP in equal runs. */

#include "rows.h"

typedef struct {
    const void *gradient; /* of bf16 numbers, the upper halves of float32, where `bf16` is set */
    float *weight, *mean, *square, *largest, *average, *steps; /* `largest` is NULL without amsgrad */
    int64_t size, bf16;
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

INLINE float sum_of_squares(int64_t bf16, const void *gradient, int64_t from, int64_t to) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = from; k < to; k++) sum += number(gradient, k, bf16) * number(gradient, k, bf16);
    return sum;
}

/* The sum of all gradients' squares: a sum of each thread. */
#define SOME 4096 /* few enough for float32 */
void squares(int64_t threads, int64_t n, const Array *arrays, double *sums) {
    int64_t all = total(arrays, n);
    ON_THREADS
    for (int64_t t = 0; t < threads; t++) {
        double sum = 0;
        int64_t first = 0;
        for (int64_t i = 0; i < n; first += arrays[i++].size) {
            Run run = run_of(t, threads, all, first, arrays[i].size);
            for (int64_t from = run.from; from < run.to; from += SOME) {
                int64_t to = from + SOME < run.to ? from + SOME : run.to;
                sum += IN_EITHER(arrays[i].bf16, sum_of_squares, arrays[i].gradient, from, to);
            }
        }
        sums[t] = sum;
    }
}

typedef struct {
    float factor, kept, rate, root, towards_mean, square_kept, towards_square, eps, towards;
} Numbers;

/* What bench/kernels/adamw.py gives to `step`. */
typedef struct {
    double rate, beta1, beta2, weight_decay, eps, average_kept;
} Settings;

INLINE void step_of(int64_t bf16, const Numbers *c, Run run, const void *restrict gradient, float *restrict weight,
                    float *restrict mean, float *restrict square, float *restrict largest, float *restrict average) {
    float r = 1 / c->root;
    for (int64_t k = run.from; k < run.to; k++) {
        float g = c->factor * number(gradient, k, bf16);
        mean[k] += c->towards_mean * (g - mean[k]);
        square[k] = c->square_kept * square[k] + c->towards_square * g * g;
        if (largest) largest[k] = square[k] > largest[k] ? square[k] : largest[k];
        weight[k] = c->kept * weight[k] - c->rate * mean[k] / (sqrtf((largest ? largest : square)[k]) * r + c->eps);
        average[k] += c->towards * (weight[k] - average[k]);
    }
}

/* AdamW's step on gradients times a factor, and average <- average_kept average + (1 - average_kept) weight. */
void step(int64_t threads, int64_t n, const Array *arrays, const float *factor, const Settings *c) {
    int64_t all = total(arrays, n);
    Numbers numbers[n];
    for (int64_t i = 0; i < n; i++) {
        double steps = ++*arrays[i].steps;
        numbers[i] = (Numbers){.factor = *factor, .kept = 1 - c->rate * c->weight_decay,
                               .rate = c->rate / (1 - pow(c->beta1, steps)), .root = sqrt(1 - pow(c->beta2, steps)),
                               .towards_mean = 1 - c->beta1, .square_kept = c->beta2, .towards_square = 1 - c->beta2,
                               .eps = c->eps, .towards = 1 - c->average_kept};
    }
    ON_THREADS
    for (int64_t t = 0; t < threads; t++) {
        int64_t first = 0;
        for (int64_t i = 0; i < n; first += arrays[i++].size) {
            const Array *x = arrays + i;
            Run run = run_of(t, threads, all, first, x->size);
            IN_EITHER(x->bf16, step_of, numbers + i, run, x->gradient, x->weight, x->mean, x->square, x->largest,
                      x->average);
        }
    }
}
