/* What bench/adamw.py does with all weights of a model at once. The numbers of all arrays, one after the other, are dealt
   out to `threads` threads of OpenMP in equal runs. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ON_THREADS _Pragma("omp parallel for schedule(static, 1) num_threads(threads)")

typedef struct {
    const void *gradient; /* of bf16 numbers, the upper halves of float32, where `halves` is set */
    float *weight, *mean, *square, *largest, *average, *steps; /* `largest` is NULL without amsgrad */
    int64_t size, halves;
} Array;

/* n <= SOME numbers of a gradient from place `at`, in `room` where they are not as they are wanted. */
#define SOME 4096
static inline const float *gradient_of(const Array *x, int64_t at, int64_t n, float *restrict room) {
    if (!x->halves) return (const float *)x->gradient + at;
    const uint16_t *half = (const uint16_t *)x->gradient + at;
    for (int64_t k = 0; k < n; k++) {
        uint32_t bits = (uint32_t)half[k] << 16;
        memcpy(room + k, &bits, 4);
    }
    return room;
}

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
            Run run = run_of(t, threads, all, first, arrays[i].size);
            for (int64_t start = run.from; start < run.to; start += SOME) { /* few enough for float32 */
                int64_t n_some = start + SOME < run.to ? SOME : run.to - start;
                float room[SOME], of_some = 0;
                const float *g = gradient_of(arrays + i, start, n_some, room);
#pragma omp simd reduction(+ : of_some)
                for (int64_t k = 0; k < n_some; k++) of_some += g[k] * g[k];
                sum += of_some;
            }
        }
        sums[t] = sum;
    }
}

typedef struct {
    float factor, kept, rate, root, towards_mean, square_kept, towards_square, eps, towards;
} Numbers;

/* What bench/adamw.py gives to `step`. */
typedef struct {
    double rate, beta1, beta2, weight_decay, eps, average_kept;
} Settings;

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
            for (int64_t at = run.from; at < run.to; at += SOME) {
                int64_t n_some = at + SOME < run.to ? SOME : run.to - at;
                float room[SOME];
                step_of(numbers + i, n_some, gradient_of(x, at, n_some, room), x->weight + at, x->mean + at,
                        x->square + at, x->largest ? x->largest + at : NULL, x->average + at);
            }
        }
    }
}
