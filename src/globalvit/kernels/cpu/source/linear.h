/* Shared by the forward and backward pass of Linear layers: packed weights, layer norm of a row, a layer on a block of
 * rows.
 *
 * Weights are packed in panels as wide as a register tile. The depth of a product (its inputs) is counted in steps
 * (products.h). Sums are float32 and run along the whole depth in one order, so results depend neither on the number of
 * threads nor on the number of rows.
 */

#ifndef GLOBALVIT_LINEAR_H
#define GLOBALVIT_LINEAR_H

#include "products.h"

#define BLOCK 56 /* most rows that one thread takes through all layers at once; 49 and 196 tokens fill whole blocks */
#define TILE_WIDTH (VECTORS * LANES)

/* What happens to the sums of a layer before they are written. */
enum { PLAIN, GELU, TIMES_GELU_SLOPE };

typedef struct {
    int64_t inputs, outputs;
    const float *weight; /* packed */
    const float *bias;   /* (outputs), padded with zeros to whole vectors, or NULL */
    int64_t activation;
} Layer;

typedef struct {
    int64_t dim;
    const float *factors, *offsets; /* (dim) or NULL */
    float eps;
} Norm;

/* Rows in memory, `stride` numbers apart. */
typedef struct {
    void *at;
    int64_t stride, type;
} Rows;

INLINE void *number_at(const Rows *rows, int64_t row, int64_t column) {
    return (char *)rows->at + (row * rows->stride + column) * bytes_of(rows->type);
}

/* Panels are 1 to VECTORS vectors wide, all as equal as possible. */
INLINE int64_t panels_of(int64_t outputs) { return (outputs + TILE_WIDTH - 1) / TILE_WIDTH; }
INLINE int64_t first_vector(int64_t panel, int64_t outputs) {
    return part_begin(panel, panels_of(outputs), (outputs + LANES - 1) / LANES);
}

/* Where a layer's rows go. The forward pass writes the inputs of GELU to `kept`, the backward pass reads them there for
 * its slope and writes its outputs to `activated`. `residual` is added. Rows that are not needed have no address. All
 * have the type of `out`. */
typedef struct {
    const Layer *layer;
    Rows residual, kept, out, activated;
} Finish;

/* Write a tile's sums, which include the bias. Everything but the numbers is constant at each call: branches in the
 * loop would take longer than the sums. */
INLINE void finish_as(const Finish *f, const float *sums, int64_t rows, int64_t row, int64_t column, int64_t width,
                      const int activation, const int has_residual, const int is_kept, const int64_t type,
                      const int is_whole) {
    const Layer *layer = f->layer;
    for (int64_t r = 0; r < rows; r++, row++, sums += TILE_WIDTH)
        for (int64_t c = 0; c < width; c += LANES) {
            vec x = *(const vec *)(sums + c);
            int64_t at = column + c, count = is_whole ? LANES : layer->outputs - at, kept = row * f->kept.stride + at;
            if (activation == GELU && is_kept) write(f->kept.at, kept, x, count, type);
            if (activation == GELU) x = gelu(x, type);
            if (activation == TIMES_GELU_SLOPE) {
                vec before = read(f->kept.at, kept, count, type), share = normal_share(before, type);
                write(f->activated.at, kept, before * share, count, type);
                x *= share + times_density(before, type);
            }
            if (has_residual) x += read(f->residual.at, row * f->residual.stride + at, count, type);
            write(f->out.at, row * f->out.stride + at, x, count, type);
        }
}

#define FINISH_AS(TYPE, WHOLE)                                                                                         \
    if (activation == PLAIN && has_residual)                                                                           \
        finish_as(f, sums, rows, row, column, width, PLAIN, 1, 0, TYPE, WHOLE);                                        \
    else if (activation == PLAIN)                                                                                      \
        finish_as(f, sums, rows, row, column, width, PLAIN, 0, 0, TYPE, WHOLE);                                        \
    else if (activation == GELU && is_kept)                                                                            \
        finish_as(f, sums, rows, row, column, width, GELU, 0, 1, TYPE, WHOLE);                                         \
    else if (activation == GELU)                                                                                       \
        finish_as(f, sums, rows, row, column, width, GELU, 0, 0, TYPE, WHOLE);                                         \
    else                                                                                                               \
        finish_as(f, sums, rows, row, column, width, TIMES_GELU_SLOPE, 0, 1, TYPE, WHOLE);

static __attribute__((noinline)) void finish(const Finish *f, const float *sums, int64_t rows, int64_t row,
                                             int64_t column, int64_t width) {
    int64_t activation = f->layer->activation, has_residual = f->residual.at != NULL, is_kept = f->kept.at != NULL;
    if (f->layer->outputs - column < width) {
        FINISH_AS(f->out.type, 0)
    } else if (f->out.type == 0) {
        FINISH_AS(0, 1)
    } else {
        FINISH_AS(1, 1)
    }
}

/* Prefetch rows that will be read soon into the second level of cache, as the first is full. They are too far apart for
 * the CPU to prefetch by itself. */
INLINE void prefetch(const Rows *rows, int64_t row, int64_t count, int64_t column, int64_t width) {
    int64_t size = bytes_of(rows->type);
    for (int64_t r = row; rows->at && r < row + count; r++)
        for (int64_t c = 0; c < width * size; c += 64)
            __builtin_prefetch((const char *)rows->at + (r * rows->stride + column) * size + c, 0, 2);
}

/* Apply a layer to the rows in `a` (rows, steps of the depth); they are written from row `row` on. */
INLINE void apply(const Finish *f, const float *a, int64_t a_row, int64_t row, int64_t rows, int64_t first_panel,
                  int64_t last_panel, int64_t type) {
    const Layer *layer = f->layer;
    int64_t depth = steps_of(layer->inputs, type), tiles = (rows + ROWS - 1) / ROWS;
    int is_final = layer->activation == PLAIN && writes(type, f->out.type) && !(f->residual.at && f->out.type != type);
    float sums[ROWS * TILE_WIDTH] __attribute__((aligned(64)));
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        int64_t vector = first_vector(panel, layer->outputs),
                vectors = first_vector(panel + 1, layer->outputs) - vector, column = vector * LANES,
                width = vectors * LANES;
        /* Sums that are final go to their place at once, if no vector reaches over the end of a row. */
        int is_direct = is_final && column + width <= layer->outputs;
        Product p = {.depth = depth,
                     .a_row = a_row,
                     .a_step = 1,
                     .b = layer->weight + column * depth,
                     .b_step = width,
                     .begin = layer->bias ? layer->bias + column : zeros,
                     .c = sums,
                     .c_row = is_direct ? f->out.stride : TILE_WIDTH,
                     .c_type = is_direct ? f->out.type : 0,
                     .addend_row = f->residual.stride};
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = part_begin(t, tiles, rows), count = part_begin(t + 1, tiles, rows) - first;
            p.a = a + first * a_row;
            prefetch(&f->residual, row + first, count, column, width);
            if (layer->activation == TIMES_GELU_SLOPE) prefetch(&f->kept, row + first, count, column, width);
            if (is_direct) p.c = number_at(&f->out, row + first, column);
            if (is_direct && f->residual.at) p.addend = number_at(&f->residual, row + first, column);
            multiply_tile(count, vectors, &p, type);
            if (!is_direct) finish(f, sums, count, row + first, column, width);
        }
    }
}

/* Subtract a row's mean and write it to `numbers`; return the factor that makes its variance 1. `is_whole`: the row
 * fills whole vectors. */
INLINE float center_row(const void *x, int64_t at, int64_t x_type, const Norm *norm, float *numbers,
                        const int is_whole) {
    const int64_t dim = norm->dim;
    vec sum = {}, squares = {};
    for (int64_t c = 0; c < dim; c += LANES)
        sum += *(vec *)(numbers + c) = read(x, at + c, is_whole ? LANES : dim - c, x_type);
    float mean = total(sum) / dim;
    for (int64_t c = 0; c < dim; c += LANES) {
        vec centered = *(vec *)(numbers + c) - mean;
        if (!is_whole && dim - c < LANES) centered = read(&centered, 0, dim - c, 0);
        *(vec *)(numbers + c) = centered;
        squares += centered * centered;
    }
    return 1.0f / sqrtf(total(squares) / dim + norm->eps);
}

INLINE void norm_row_as(const void *x, int64_t at, int64_t x_type, const Norm *norm, float *numbers, void *out,
                        int64_t out_at, int64_t type, const int is_whole) {
    const int64_t dim = norm->dim;
    float scale = center_row(x, at, x_type, norm, numbers, is_whole);
    for (int64_t c = 0; c < dim; c += LANES) {
        int64_t count = is_whole ? LANES : dim - c;
        vec normed = *(vec *)(numbers + c) * scale;
        if (norm->factors) normed = normed * read(norm->factors, c, count, 0) + read(norm->offsets, c, count, 0);
        write(out, out_at + c, normed, count, type);
    }
}

/* Layer norm of a row; factors and offsets may be NULL. `numbers` has room for a row. */
static void norm_row(const void *x, int64_t at, int64_t x_type, const Norm *norm, float *numbers, void *out,
                     int64_t out_at, int64_t type) {
    if (norm->dim % LANES)
        norm_row_as(x, at, x_type, norm, numbers, out, out_at, type, 0);
    else if (x_type == 0 && type == 0)
        norm_row_as(x, at, 0, norm, numbers, out, out_at, 0, 1);
    else if (x_type == 0)
        norm_row_as(x, at, 0, norm, numbers, out, out_at, 1, 1);
    else
        norm_row_as(x, at, 1, norm, numbers, out, out_at, type, 1);
}

/* Rows as the left factor of a product, (rows, steps): in place if their type and stride allow it, else in `space`. */
INLINE const float *left_factor(const Rows *from, int64_t row, int64_t rows, int64_t dim, float *space, int64_t type) {
    int64_t depth = steps_of(dim, type), pair = numbers_a_step(type), size = bytes_of(from->type);
    int is_so = from->type == (pair == 2) && dim % pair == 0 && from->stride == dim;
    const char *at = (const char *)from->at + row * from->stride * size;
    if (is_so) return (const float *)at;
    for (int64_t r = 0; r < rows; r++, at += from->stride * size)
        for (int64_t step = 0; step < depth; step += LANES)
            write(space + r * depth, step, read_steps(at, step, dim - step * pair, from->type, type), depth - step, 0);
    return space;
}

/* Rows are cut into blocks of equal size; few rows into smaller ones, so that every thread gets some. */
INLINE int64_t blocks_of(int64_t rows, int64_t threads) {
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    return blocks < 4 * threads ? least(round_up(blocks, threads), (rows + ROWS - 1) / ROWS) : blocks;
}

#endif
