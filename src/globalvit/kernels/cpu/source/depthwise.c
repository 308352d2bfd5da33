/* Forward pass of the depthwise 3x3 convolution of a channels-last map, zero-padded. Bias, activation and the sums over
 * each channel that squeeze-excite needs are computed in the same pass.
 */

#include "depthwise.h"

typedef struct {
    Shape shape;
    const void *x;        /* (B, H, W, C), and so is out */
    const float *taps;    /* (9, C) */
    const float *offsets; /* (C) or NULL */
    int64_t activation;   /* 0 none, 1 GELU, 2 ReLU */
    void *out;
    float *sums; /* (B, chunks of rows, C), of the outputs, or NULL */
} Depthwise;

const int64_t size_of_depthwise = sizeof(Depthwise);

INLINE vec activate(vec x, int64_t activation, int64_t type) {
    return activation == 1 ? gelu(x, type) : activation == 2 ? larger(splat(0.0f), x) : x;
}

/* LANES channels of a row, from left to right, so that two columns of three stay in registers. Returns their sum. */
static vec convolve_row(const Depthwise *task, int64_t image, int64_t row, int64_t channel) {
    const Shape *shape = &task->shape;
    int64_t left = shape->channels - channel, at = pixel_at(shape, image, row, 0) + channel;
    vec tap[9], offset = task->offsets ? read(task->offsets, channel, left, 0) : (vec){}, sum = {};
    read_taps(tap, task->taps, shape, channel);
    Column before = {}, here = read_column(task->x, shape, image, row, 0, channel);
    for (int64_t x = 0; x < shape->width; x++, at += shape->channels) {
        Column after = read_column(task->x, shape, image, row, x + 1, channel);
        vec out = activate(convolve(offset, tap, &before, &here, &after), task->activation, shape->type);
        write(task->out, at, out, left, shape->type);
        sum += out;
        before = here;
        here = after;
    }
    return sum;
}

int64_t depthwise_chunks(int64_t height) { return chunks_of(height); }

void depthwise(const Depthwise *task) {
    const Shape *shape = &task->shape;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t job = 0; job < jobs_of(shape); job++) {
        Chunk chunk = chunk_of(shape, job);
        for (int64_t c = 0; c < shape->channels; c += LANES) {
            vec sum = {};
            for (int64_t row = chunk.first; row < chunk.last; row++) sum += convolve_row(task, chunk.image, row, c);
            if (task->sums) write(task->sums, job * shape->channels + c, sum, shape->channels - c, 0);
        }
    }
}
