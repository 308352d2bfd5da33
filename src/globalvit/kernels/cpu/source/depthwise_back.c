/* Backward pass of the depthwise 3x3 convolution with GELU after it, and of the gates of squeeze-excite.
 *
 * The inputs of GELU are computed again, which costs less than writing and reading them. Sums over a map come in parts,
 * one for each job, which the caller adds in order.
 */

#include "arena.h"
#include "depthwise.h"

typedef struct {
    Shape shape;
    const void *x;          /* (B, H, W, C), and so are d_out and d_x */
    const float *taps;      /* (9, C) */
    const void *d_out;      /* gradient of the outputs of GELU */
    const float *d_every;   /* (B, C), added to that of every pixel */
    const void *d_residual; /* added to d_x, or NULL */
    void *d_x;              /* or NULL */
    float *d_taps;          /* (B, chunks of rows, 9, C) */
} DepthwiseBack;

const int64_t size_of_depthwise_back = sizeof(DepthwiseBack);

/* Gradients of a chunk's sums, LANES channels of them, in a frame of zeros: (CHUNK + 2, width + 2, LANES). */
typedef struct {
    float *numbers;
    int64_t row;
} Frame;

/* Gradients of the sums of one row, and what they add to those of the taps if the row belongs to the chunk. */
INLINE void differentiate_row(const DepthwiseBack *task, float *to, int64_t image, int64_t row, int64_t channel,
                              vec d_taps[9], const int is_own) {
    const Shape *shape = &task->shape;
    int64_t left = shape->channels - channel, at = pixel_at(shape, image, row, 0) + channel;
    vec tap[9], sums[9] = {}, every = read(task->d_every, image * shape->channels + channel, left, 0);
    read_taps(tap, task->taps, shape, channel);
    Column before = {}, here = read_column(task->x, shape, image, row, 0, channel);
    for (int64_t x = 0; x < shape->width; x++, at += shape->channels) {
        Column after = read_column(task->x, shape, image, row, x + 1, channel);
        vec sum = convolve((vec){}, tap, &before, &here, &after);
        vec slope = normal_share(sum, shape->type) + times_density(sum, shape->type);
        vec gradient = (read(task->d_out, at, left, shape->type) + every) * slope;
        *(vec *)(to + x * LANES) = gradient;
        for (int y = 0; is_own && y < 3; y++) {
            sums[3 * y] += gradient * before.pixel[y];
            sums[3 * y + 1] += gradient * here.pixel[y];
            sums[3 * y + 2] += gradient * after.pixel[y];
        }
        before = here;
        here = after;
    }
    for (int i = 0; is_own && i < 9; i++) d_taps[i] += sums[i];
}

/* The column of three gradients that add to a pixel's, the lowest first: the backward pass mirrors the taps. */
INLINE Column read_gradients(const Frame *frame, int64_t row, int64_t column) {
    const float *at = frame->numbers + row * frame->row + column * LANES;
    return (Column){{*(const vec *)(at + 2 * frame->row), *(const vec *)(at + frame->row), *(const vec *)at}};
}

/* Gradients of one row of the inputs, the chunk's row `row`. */
static void convolve_row_back(const DepthwiseBack *task, const Frame *frame, int64_t row, int64_t at, int64_t left) {
    const Shape *shape = &task->shape;
    vec tap[9];
    read_taps(tap, task->taps, shape, shape->channels - left);
    Column before = read_gradients(frame, row, 0), here = read_gradients(frame, row, 1);
    for (int64_t x = 0; x < shape->width; x++, at += shape->channels) {
        Column after = read_gradients(frame, row, x + 2);
        vec sum = task->d_residual ? read(task->d_residual, at, left, shape->type) : (vec){};
        write(task->d_x, at, convolve(sum, tap, &after, &here, &before), left, shape->type);
        before = here;
        here = after;
    }
}

/* LANES channels of a chunk of rows. */
static void run_chunk(const DepthwiseBack *task, const Frame *frame, int64_t job, int64_t channel) {
    const Shape *shape = &task->shape;
    Chunk chunk = chunk_of(shape, job);
    int64_t first = chunk.first, last = chunk.last, left = shape->channels - channel;
    vec d_taps[9] = {};
    for (int64_t row = first - 1; row <= last; row++) {
        float *to = frame->numbers + (row - first + 1) * frame->row;
        memset(to, 0, frame->row * sizeof(float));
        if (row >= first && row < last)
            differentiate_row(task, to + LANES, chunk.image, row, channel, d_taps, 1);
        else if (row >= 0 && row < shape->height)
            differentiate_row(task, to + LANES, chunk.image, row, channel, d_taps, 0);
    }
    for (int i = 0; i < 9; i++) write(task->d_taps, (job * 9 + i) * shape->channels + channel, d_taps[i], left, 0);
    for (int64_t row = first; task->d_x && row < last; row++)
        convolve_row_back(task, frame, row - first, pixel_at(shape, chunk.image, row, 0) + channel, left);
}

/* Returns 0, or 1 without memory. */
int depthwise_back(const DepthwiseBack *task) {
    const Shape *shape = &task->shape;
    int64_t row = (shape->width + 2) * LANES;
    Arena *arena = take_arena(0, (CHUNK + 2) * row);
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Frame frame = {own_floats(arena), row};
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < jobs_of(shape); job++)
            for (int64_t c = 0; c < shape->channels; c += LANES) run_chunk(task, &frame, job, c);
    }
    give_back(arena);
    return 0;
}

typedef struct {
    Shape shape;
    const void *x;      /* (B, H, W, C), and so are d_x and gated */
    const float *gates; /* (B, C) */
    void *d_x;          /* gradient of x times the gates; replaced by that of x */
    void *gated;        /* receives x times the gates */
    float *d_gates;     /* (B, chunks of rows, C) */
} GatesBack;

const int64_t size_of_gates_back = sizeof(GatesBack);

void gates_back(const GatesBack *task) {
    const Shape *shape = &task->shape;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t job = 0; job < jobs_of(shape); job++) {
        Chunk chunk = chunk_of(shape, job);
        for (int64_t c = 0; c < shape->channels; c += LANES) {
            int64_t left = shape->channels - c, end = pixel_at(shape, chunk.image, chunk.last, 0) + c;
            vec gate = read(task->gates, chunk.image * shape->channels + c, left, 0), sum = {};
            for (int64_t at = pixel_at(shape, chunk.image, chunk.first, 0) + c; at < end; at += shape->channels) {
                vec x = read(task->x, at, left, shape->type), gradient = read(task->d_x, at, left, shape->type);
                sum += x * gradient;
                write(task->d_x, at, gradient * gate, left, shape->type);
                write(task->gated, at, x * gate, left, shape->type);
            }
            write(task->d_gates, job * shape->channels + c, sum, left, 0);
        }
    }
}
