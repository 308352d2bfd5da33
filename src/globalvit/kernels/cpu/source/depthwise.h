/* Shared by the forward and backward pass of depthwise 3x3 convolutions: maps read column by column, and the sums. */

#ifndef GLOBALVIT_DEPTHWISE_H
#define GLOBALVIT_DEPTHWISE_H

#include "vectors.h"

#define CHUNK 8 /* rows whose sums are added together, whatever the number of threads */

/* Of channels-last maps (B, H, W, C), and their type. */
typedef struct {
    int64_t images, height, width, channels, type;
} Shape;

INLINE int64_t chunks_of(int64_t height) { return (height + CHUNK - 1) / CHUNK; }

/* The rows of an image that one job computes. */
typedef struct {
    int64_t image, first, last;
} Chunk;

INLINE int64_t jobs_of(const Shape *shape) { return shape->images * chunks_of(shape->height); }
INLINE Chunk chunk_of(const Shape *shape, int64_t job) {
    int64_t chunks = chunks_of(shape->height), first = job % chunks * CHUNK;
    return (Chunk){job / chunks, first, least(first + CHUNK, shape->height)};
}

INLINE int64_t pixel_at(const Shape *shape, int64_t image, int64_t row, int64_t column) {
    return ((image * shape->height + row) * shape->width + column) * shape->channels;
}

/* One column of three pixels, LANES channels of them; zeros outside the map. */
typedef struct {
    vec pixel[3];
} Column;

INLINE Column read_column(const void *map, const Shape *shape, int64_t image, int64_t row, int64_t column,
                          int64_t channel) {
    Column found = {};
    for (int y = 0; y < 3; y++) {
        int64_t at = row + y - 1;
        if (at < 0 || at >= shape->height || column >= shape->width) continue;
        at = pixel_at(shape, image, at, column) + channel;
        found.pixel[y] = read(map, at, shape->channels - channel, shape->type);
    }
    return found;
}

/* The nine taps of some channels. */
INLINE void read_taps(vec tap[9], const float *taps, const Shape *shape, int64_t channel) {
    for (int i = 0; i < 9; i++) tap[i] = read(taps, i * shape->channels + channel, shape->channels - channel, 0);
}

INLINE vec convolve(vec sum, const vec tap[9], const Column *before, const Column *here, const Column *after) {
    for (int y = 0; y < 3; y++)
        sum += tap[3 * y] * before->pixel[y] + tap[3 * y + 1] * here->pixel[y] + tap[3 * y + 2] * after->pixel[y];
    return sum;
}

#endif
