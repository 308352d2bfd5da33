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

/* LANES channels of a row, from left to right. What a column of three pixels adds to the output before it, to its own
 * and to the next one is computed at once, so that every pixel is read once for each row. Returns the sum of the
 * outputs. */
INLINE vec convolve_row_as(const Depthwise *task, int64_t image, int64_t row, int64_t channel, const int64_t activation,
                           const int64_t type, const int is_whole) {
    const Shape *shape = &task->shape;
    const int64_t count = is_whole ? LANES : shape->channels - channel, step = shape->channels,
                  above = row > 0 ? -shape->width * step : 0, below = row + 1 < shape->height ? shape->width * step : 0;
    int64_t at = pixel_at(shape, image, row, 0) + channel;
    vec tap[9], sum = {};
    read_taps(tap, task->taps, shape, channel);
    const vec offset = task->offsets ? read(task->offsets, channel, count, 0) : (vec){};
    vec before = {}, here = offset;
    for (int64_t x = 0; x <= shape->width; x++, at += step) {
        vec left = {}, middle = {}, right = {};
        if (x < shape->width) {
            vec pixel = read(task->x, at, count, type);
            left = tap[5] * pixel, middle = tap[4] * pixel, right = tap[3] * pixel;
            if (above) {
                pixel = read(task->x, at + above, count, type);
                left += tap[2] * pixel, middle += tap[1] * pixel, right += tap[0] * pixel;
            }
            if (below) {
                pixel = read(task->x, at + below, count, type);
                left += tap[8] * pixel, middle += tap[7] * pixel, right += tap[6] * pixel;
            }
        }
        if (x > 0) {
            vec out = activate(before + left, activation, type);
            write(task->out, at - step, out, count, type);
            sum += out;
        }
        before = here + middle;
        here = offset + right;
    }
    return sum;
}

static vec convolve_row(const Depthwise *task, int64_t image, int64_t row, int64_t channel) {
    const Shape *shape = &task->shape;
    if (shape->channels - channel < LANES)
        return convolve_row_as(task, image, row, channel, task->activation, shape->type, 0);
    switch (shape->type * 3 + task->activation) {
    case 0:
        return convolve_row_as(task, image, row, channel, 0, 0, 1);
    case 1:
        return convolve_row_as(task, image, row, channel, 1, 0, 1);
    case 2:
        return convolve_row_as(task, image, row, channel, 2, 0, 1);
    case 3:
        return convolve_row_as(task, image, row, channel, 0, 1, 1);
    case 4:
        return convolve_row_as(task, image, row, channel, 1, 1, 1);
    default:
        return convolve_row_as(task, image, row, channel, 2, 1, 1);
    }
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
