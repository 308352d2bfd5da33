/* Convolution of a channels-last map, zero-padded, for CPUs, forward: products of the rows of a window with the
 * weights, read where they lie, and a layer norm of what comes out.
 *
 * For one row of the kernel, the inputs of an output pixel are neighbours in memory, kernel * channels of them; those
 * of the next pixel begin stride * channels further. So every row of the kernel is one product of the kind that Linear
 * layers are.
 */

#include <omp.h>

#include "dense.h"

typedef struct {
    int64_t images, height, width, inputs, type;
    const void *x; /* (B, H, W, inputs) */
    int64_t kernel, stride, padding;
    int64_t out_height, out_width, outputs;
    const float *weight; /* packed, one row of the kernel after another */
    int64_t packed_row;  /* floats of a row of the kernel */
    const float *bias;   /* (outputs) and zeros that fill the last vector, or NULL */
    Norm norm;           /* of each output pixel, unless it has no dim */
    void *out;           /* (B, out_height, out_width, outputs) */
} Convolution;

/* Where one thread works. */
typedef struct {
    float *rows;    /* (kernel, padded width, steps of the inputs) */
    float *sums;    /* (out_width, padded outputs) */
    float *numbers; /* one pixel's outputs */
} Bench;

INLINE int64_t padded_width(const Convolution *task) { return task->width + 2 * task->padding; }

static void *prepare(Bench *bench, const Convolution *task) {
    int64_t steps = steps_of(task->inputs, task->type), wide = round_up(task->outputs, LANES);
    int64_t rows = round_up(task->kernel * padded_width(task) * steps, 16), sums = task->out_width * wide;
    float *space = workspace(rows + sums + wide + LANES);
    if (space) *bench = (Bench){space, space + rows, space + rows + sums};
    return space;
}

/* The rows of the map under an output row, with zeros around them. */
static void read_rows(const Convolution *task, float *rows, int64_t image, int64_t out_row) {
    int64_t size = task->inputs * bytes_of(task->type), wide = padded_width(task) * size, side = task->padding * size;
    for (int64_t k = 0; k < task->kernel; k++) {
        int64_t row = out_row * task->stride - task->padding + k;
        char *to = (char *)rows + k * wide;
        if (row < 0 || row >= task->height) {
            memset(to, 0, wide);
            continue;
        }
        memset(to, 0, side);
        memcpy(to + side, (const char *)task->x + (image * task->height + row) * task->width * size,
               task->width * size);
        memset(to + side + task->width * size, 0, side);
    }
}

/* Sums of some neighbouring output pixels, some panels' worth of outputs. */
static void convolve(const Convolution *task, const Bench *bench, int64_t first, int64_t count) {
    int64_t steps = steps_of(task->inputs, task->type), wide = round_up(task->outputs, LANES);
    for (int64_t panel = 0; panel < panels_of(task->outputs); panel++) {
        int64_t vector = first_vector(panel, task->outputs), vectors = first_vector(panel + 1, task->outputs) - vector;
        Product p = {.depth = task->kernel * steps,
                     .a_row = task->stride * steps,
                     .a_step = 1,
                     .b_step = vectors * LANES,
                     .begin = zeros,
                     .c = bench->sums + first * wide + vector * LANES,
                     .c_row = wide};
        for (int64_t k = 0; k < task->kernel; k++) {
            p.a = bench->rows + (k * padded_width(task) + first * task->stride) * steps;
            p.b = task->weight + k * task->packed_row + vector * LANES * p.depth;
            multiply_tile(count, vectors, &p, task->type);
            p.begin = p.c;
            p.begin_row = wide;
        }
    }
}

static void write_row(const Convolution *task, const Bench *bench, int64_t image, int64_t out_row) {
    int64_t wide = round_up(task->outputs, LANES),
            at = (image * task->out_height + out_row) * task->out_width * task->outputs;
    for (int64_t pixel = 0; pixel < task->out_width; pixel++, at += task->outputs) {
        float *sums = bench->sums + pixel * wide;
        for (int64_t c = 0; task->bias && c < wide; c += LANES) *(vec *)(sums + c) += *(const vec *)(task->bias + c);
        if (task->norm.dim) norm_row(sums, 0, 0, &task->norm, bench->numbers, task->out, at, task->type);
        for (int64_t c = 0; task->norm.dim == 0 && c < task->outputs; c += LANES)
            write(task->out, at + c, *(vec *)(sums + c), task->outputs - c, task->type);
    }
}

/* Returns 0, or 1 without memory. */
int convolution(const Convolution *task) {
    int64_t tiles = (task->out_width + ROWS - 1) / ROWS;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Bench bench = {};
        void *space = prepare(&bench, task);
        failed |= space == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < task->images * task->out_height; job++) {
            int64_t image = job / task->out_height, row = job % task->out_height;
            if (space == NULL) continue;
            read_rows(task, bench.rows, image, row);
            for (int64_t t = 0; t < tiles; t++) {
                int64_t first = part_begin(t, tiles, task->out_width);
                convolve(task, &bench, first, part_begin(t + 1, tiles, task->out_width) - first);
            }
            write_row(task, &bench, image, row);
        }
    }
    return failed;
}
