/* Forward pass of the convolution of a channels-last map, zero-padded, with a layer norm of its outputs: products of
 * the rows under a window with the weights, read in place.
 *
 * For one row of the kernel, the inputs of an output pixel are contiguous, kernel * channels of them; those of the next
 * pixel begin stride * channels later. So each row of the kernel is a product like that of a Linear layer.
 */

#include <omp.h>

#include "arena.h"
#include "linear.h"

typedef struct {
    int64_t images, height, width, inputs, type;
    const void *x; /* (B, H, W, inputs) */
    int64_t kernel, stride, padding;
    int64_t out_height, out_width, outputs;
    const float *weight; /* packed, one row of the kernel after another */
    int64_t packed_row;  /* floats of a row of the kernel */
    const float *bias;   /* (outputs), padded with zeros to whole vectors, or NULL */
    Norm norm;           /* of each output pixel, unless its dim is 0 */
    void *out;           /* (B, out_height, out_width, outputs) */
} Convolution;

const int64_t size_of_convolution = sizeof(Convolution);

/* Scratch memory of one thread. */
typedef struct {
    float *rows;    /* (kernel, padded width, steps of the inputs) */
    float *sums;    /* (out_width, padded outputs) */
    float *numbers; /* one pixel's outputs */
} Scratch;

INLINE int64_t padded_width(const Convolution *task) { return task->width + 2 * task->padding; }

static int64_t floats_of_rows(const Convolution *task) {
    return round_up(task->kernel * padded_width(task) * steps_of(task->inputs, task->type), 16);
}
static int64_t floats_of_sums(const Convolution *task) { return task->out_width * round_up(task->outputs, LANES); }
static int64_t scratch_size(const Convolution *task) {
    return floats_of_rows(task) + floats_of_sums(task) + round_up(task->outputs, LANES) + LANES;
}

static Scratch prepare(float *space, const Convolution *task) {
    float *sums = space + floats_of_rows(task);
    return (Scratch){space, sums, sums + floats_of_sums(task)};
}

/* The rows of the map under an output row, in steps, with zeros around them. Where the product has no pairs, bfloat16
 * becomes float32 here. The number of inputs is a multiple of `numbers_a_step`. */
static void read_rows(const Convolution *task, float *rows, int64_t image, int64_t out_row) {
    int64_t steps = steps_of(task->inputs, task->type), wide = padded_width(task) * steps, side = task->padding * steps;
    int64_t inside = task->width * steps, is_copied = task->type == (numbers_a_step(task->type) == 2);
    for (int64_t k = 0; k < task->kernel; k++) {
        int64_t row = out_row * task->stride - task->padding + k, at = (image * task->height + row) * task->width;
        float *to = rows + k * wide;
        if (row < 0 || row >= task->height) {
            memset(to, 0, wide * sizeof(float));
            continue;
        }
        memset(to, 0, side * sizeof(float));
        const char *from = (const char *)task->x + at * task->inputs * bytes_of(task->type);
        if (is_copied)
            memcpy(to + side, from, inside * sizeof(float));
        else
            for (int64_t i = 0; i < inside; i += LANES)
                write(to + side, i, read(from, i, inside - i, task->type), inside - i, 0);
        memset(to + side + inside, 0, side * sizeof(float));
    }
}

/* Sums of `count` output pixels from `first` on. */
static void convolve(const Convolution *task, const Scratch *scratch, int64_t first, int64_t count) {
    int64_t steps = steps_of(task->inputs, task->type), wide = round_up(task->outputs, LANES);
    for (int64_t panel = 0; panel < panels_of(task->outputs); panel++) {
        int64_t vector = first_vector(panel, task->outputs), vectors = first_vector(panel + 1, task->outputs) - vector;
        Product p = {.depth = task->kernel * steps,
                     .a_row = task->stride * steps,
                     .a_step = 1,
                     .b_step = vectors * LANES,
                     .begin = zeros,
                     .c = scratch->sums + first * wide + vector * LANES,
                     .c_row = wide};
        for (int64_t k = 0; k < task->kernel; k++) {
            p.a = scratch->rows + (k * padded_width(task) + first * task->stride) * steps;
            p.b = task->weight + k * task->packed_row + vector * LANES * p.depth;
            multiply_tile(count, vectors, &p, task->type);
            p.begin = p.c;
            p.begin_row = wide;
        }
    }
}

static void write_row(const Convolution *task, const Scratch *scratch, int64_t image, int64_t out_row) {
    int64_t wide = round_up(task->outputs, LANES),
            at = (image * task->out_height + out_row) * task->out_width * task->outputs;
    for (int64_t pixel = 0; pixel < task->out_width; pixel++, at += task->outputs) {
        float *sums = scratch->sums + pixel * wide;
        for (int64_t c = 0; task->bias && c < wide; c += LANES) *(vec *)(sums + c) += *(const vec *)(task->bias + c);
        if (task->norm.dim) norm_row(sums, 0, 0, &task->norm, scratch->numbers, task->out, at, task->type);
        for (int64_t c = 0; task->norm.dim == 0 && c < task->outputs; c += LANES)
            write(task->out, at + c, *(vec *)(sums + c), task->outputs - c, task->type);
    }
}

/* Returns 0, or 1 without memory. */
int convolution(const Convolution *task) {
    int64_t tiles = (task->out_width + ROWS - 1) / ROWS;
    Arena *arena = take_arena(0, scratch_size(task));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Scratch scratch = prepare(own_floats(arena), task);
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < task->images * task->out_height; job++) {
            int64_t image = job / task->out_height, row = job % task->out_height;
            read_rows(task, scratch.rows, image, row);
            for (int64_t t = 0; t < tiles; t++) {
                int64_t first = part_begin(t, tiles, task->out_width);
                convolve(task, &scratch, first, part_begin(t + 1, tiles, task->out_width) - first);
            }
            write_row(task, &scratch, image, row);
        }
    }
    give_back(arena);
    return 0;
}
