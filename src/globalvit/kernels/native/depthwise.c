/* Depthwise 3x3 convolution of a channels-last map, zero-padded, for CPUs: what is added and done to the sums on their
 * way out happens in the same pass, and so do the sums of each channel that squeeze-excite asks for.
 */

#include "vectors.h"

#define CHUNK 8 /* rows that are summed up together, whatever the number of threads */

typedef struct {
    int64_t images, height, width, channels, type;
    const void *x;        /* (B, H, W, C), and so is out */
    const float *taps;    /* (9, C) */
    const float *offsets; /* (C) or NULL */
    int64_t activation;   /* 0 none, 1 GELU, 2 ReLU */
    void *out;
    float *sums; /* (B, chunks of rows, C), of what goes out, or NULL */
} Depthwise;

/* One column of three pixels; zeros outside the map. */
typedef struct {
    vec pixel[3];
} Column;

INLINE Column read_column(const Depthwise *task, int64_t image, int64_t row, int64_t column, int64_t channel) {
    Column found = {};
    for (int y = 0; y < 3; y++) {
        int64_t at = row + y - 1;
        if (at < 0 || at >= task->height || column >= task->width) continue;
        at = ((image * task->height + at) * task->width + column) * task->channels + channel;
        found.pixel[y] = read(task->x, at, task->channels - channel, task->type);
    }
    return found;
}

INLINE vec activate(vec x, int64_t activation, int64_t type) {
    return activation == 1 ? gelu(x, type) : activation == 2 ? larger(splat(0.0f), x) : x;
}

/* A row of the map, LANES channels of it, from left to right: two columns of three stay in registers. The sum. */
static vec convolve_row(const Depthwise *task, int64_t image, int64_t row, int64_t channel) {
    int64_t left = task->channels - channel, at = (image * task->height + row) * task->width * task->channels + channel;
    vec tap[9], offset = task->offsets ? read(task->offsets, channel, left, 0) : (vec){}, sum = {};
    for (int i = 0; i < 9; i++) tap[i] = read(task->taps, i * task->channels + channel, left, 0);
    Column before = {}, here = read_column(task, image, row, 0, channel);
    for (int64_t x = 0; x < task->width; x++, at += task->channels) {
        Column after = read_column(task, image, row, x + 1, channel);
        vec out = offset;
        for (int y = 0; y < 3; y++)
            out += tap[3 * y] * before.pixel[y] + tap[3 * y + 1] * here.pixel[y] + tap[3 * y + 2] * after.pixel[y];
        out = activate(out, task->activation, task->type);
        write(task->out, at, out, left, task->type);
        sum += out;
        before = here;
        here = after;
    }
    return sum;
}

int64_t depthwise_chunks(int64_t height) { return (height + CHUNK - 1) / CHUNK; }

void depthwise(const Depthwise *task) {
    int64_t chunks = depthwise_chunks(task->height);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t job = 0; job < task->images * chunks; job++) {
        int64_t image = job / chunks, first = job % chunks * CHUNK, last = least(first + CHUNK, task->height);
        for (int64_t c = 0; c < task->channels; c += LANES) {
            vec sum = {};
            for (int64_t row = first; row < last; row++) sum += convolve_row(task, image, row, c);
            if (task->sums) write(task->sums, job * task->channels + c, sum, task->channels - c, 0);
        }
    }
}
