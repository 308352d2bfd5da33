/* Backward pass of Linear layers on rows of tokens. Gradients of the inputs take the steps of the forward pass with
 * transposed weights; gradients of the weights are products over all tokens.
 */

#include <omp.h>

#include "arena.h"
#include "linear.h"

#define DEPTH 96 /* tokens that are multiplied at once for the gradients of weights */

typedef struct {
    int64_t rows, type;       /* of the products */
    const void *d_out;        /* (rows, outputs of the last layer), in `type` */
    const void *kept;         /* (rows, hidden): inputs of GELU in `type`, if there are two layers */
    void *d_kept, *activated; /* receive their gradient and their GELU */
    const void *x;            /* (rows, inputs): inputs of the norm, if there is one */
    int64_t x_type;           /* of x and d_x */
    Norm norm;
    void *d_x;
    float *d_norm;       /* (blocks, 2, dim): what each block adds to the gradients of factors and offsets */
    Layer first, second; /* transposed, the last layer first; the second has no outputs if there is only one */
} Back;

const int64_t size_of_back = sizeof(Back);

/* Scratch memory of one thread. */
typedef struct {
    float *numbers; /* a row */
    float *a;       /* (BLOCK, steps of the first layer) */
    float *hidden;  /* (BLOCK, steps of the second) */
    float *normed;  /* (BLOCK, inputs): gradient of the outputs of the norm */
} Scratch;

static int64_t steps_of_rows(const Layer *layer, int64_t type) { return round_up(steps_of(layer->inputs, type), 16); }
static int64_t scratch_size(const Back *back) {
    int64_t row = round_up(back->norm.dim, 16);
    return row + BLOCK * (steps_of_rows(&back->first, back->type) + steps_of_rows(&back->second, back->type) + row) +
           LANES;
}

static Scratch prepare(float *space, const Back *back) {
    float *a = space + round_up(back->norm.dim, 16), *hidden = a + BLOCK * steps_of_rows(&back->first, back->type);
    return (Scratch){space, a, hidden, hidden + BLOCK * steps_of_rows(&back->second, back->type)};
}

/* From the gradient of a normed row the gradient of the row, and what it adds to those of factors and offsets. */
INLINE void norm_row_back_as(const Back *back, int64_t row, const float *d_normed, float *numbers, float *d_norm,
                             const int64_t x_type, const int is_whole) {
    const Norm *norm = &back->norm;
    const int64_t dim = norm->dim;
    float scale = center_row(back->x, row * dim, x_type, norm, numbers, is_whole);
    vec sum = {}, products = {};
    for (int64_t c = 0; c < dim; c += LANES) {
        int64_t count = is_whole ? LANES : dim - c;
        vec x = *(vec *)(numbers + c) * scale, d_y = read(d_normed, c, count, 0),
            d_x = d_y * read(norm->factors, c, count, 0);
        *(vec *)(numbers + c) = x;
        sum += d_x;
        products += d_x * x;
        write(d_norm, c, read(d_norm, c, count, 0) + d_y * x, count, 0);
        write(d_norm, dim + c, read(d_norm, dim + c, count, 0) + d_y, count, 0);
    }
    vec mean = splat(total(sum) / dim), slope = splat(total(products) / dim);
    for (int64_t c = 0; c < dim; c += LANES) {
        int64_t count = is_whole ? LANES : dim - c;
        vec d_x = read(d_normed, c, count, 0) * read(norm->factors, c, count, 0);
        write(back->d_x, row * dim + c, (d_x - mean - *(vec *)(numbers + c) * slope) * scale, count, x_type);
    }
}

static void norm_row_back(const Back *back, int64_t row, const float *d_normed, float *numbers, float *d_norm) {
    if (back->norm.dim % LANES)
        norm_row_back_as(back, row, d_normed, numbers, d_norm, back->x_type, 0);
    else if (back->x_type == 0)
        norm_row_back_as(back, row, d_normed, numbers, d_norm, 0, 1);
    else
        norm_row_back_as(back, row, d_normed, numbers, d_norm, 1, 1);
}

static void run_block(const Back *back, const Scratch *scratch, int64_t block, int64_t row, int64_t rows) {
    const Layer *first = &back->first, *second = &back->second;
    int64_t type = back->type, dim = second->outputs ? second->outputs : first->outputs,
            is_normed = back->norm.dim != 0;
    Rows d_out = {(void *)back->d_out, first->inputs, type}, d_kept = {back->d_kept, first->outputs, type};
    /* Gradients of normed rows are scratch of this block: their row numbers begin at 0. */
    Rows d_x = is_normed ? (Rows){scratch->normed, dim, 0} : (Rows){back->d_x, dim, back->x_type};
    const float *a = left_factor(&d_out, row, rows, first->inputs, scratch->a, type);
    Finish end = {.layer = second->outputs ? second : first, .out = d_x};
    if (second->outputs) {
        Finish middle = {.layer = first,
                         .kept = {(void *)back->kept, first->outputs, type},
                         .out = d_kept,
                         .activated = {back->activated, first->outputs, type}};
        apply(&middle, a, steps_of(first->inputs, type), row, rows, 0, panels_of(first->outputs), type);
        a = left_factor(&d_kept, row, rows, second->inputs, scratch->hidden, type);
    }
    apply(&end, a, steps_of(end.layer->inputs, type), is_normed ? 0 : row, rows, 0, panels_of(dim), type);
    if (!is_normed) return;
    float *d_norm = back->d_norm + block * 2 * dim;
    memset(d_norm, 0, 2 * dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        norm_row_back(back, row + r, scratch->normed + r * dim, scratch->numbers, d_norm);
}

/* The number of blocks does not depend on the threads, and their sums are added in order. */
int64_t linear_back_blocks(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

/* Gradients of the inputs. Returns 0, or 1 without memory. */
int linear_back(const Back *back) {
    int64_t blocks = linear_back_blocks(back->rows);
    Arena *arena = take_arena(0, scratch_size(back));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Scratch scratch = prepare(own_floats(arena), back);
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t row = part_begin(block, blocks, back->rows);
            run_block(back, &scratch, block, row, part_begin(block + 1, blocks, back->rows) - row);
        }
    }
    give_back(arena);
    return 0;
}

typedef struct {
    int64_t rows, type; /* of the products */
    const void *d_out;  /* (rows, outputs), in `type` */
    int64_t outputs;
    const void *x; /* (rows, inputs) */
    int64_t x_type, inputs;
    Norm norm;       /* of x before the layer, unless its dim is 0 */
    float *d_weight; /* (parts, outputs, inputs): sums over parts of the rows */
    float *d_bias;   /* (parts, outputs) */
    int64_t parts;
} Outer;

const int64_t size_of_outer = sizeof(Outer);

/* An input row of the layer as floats. */
static void input_row(const Outer *outer, int64_t row, float *numbers, float *to) {
    int64_t dim = outer->inputs;
    if (outer->norm.dim) {
        norm_row(outer->x, row * dim, outer->x_type, &outer->norm, numbers, to, 0, 0);
        return;
    }
    for (int64_t c = 0; c < dim; c += LANES) *(vec *)(to + c) = read(outer->x, row * dim + c, dim - c, outer->x_type);
}

/* Write two rows, or a single one, as a step of the right factor: panels of (steps of the rows, vectors). In one matrix
 * the rows of a tile's columns would be a power of two apart and evict each other from the cache. */
static void write_step(const Outer *outer, float *right, int64_t step, const float *row, const float *next) {
    int64_t steps = steps_of(outer->rows, outer->type), pair = numbers_a_step(outer->type);
    for (int64_t panel = 0; panel < panels_of(outer->inputs); panel++) {
        int64_t first = first_vector(panel, outer->inputs) * LANES,
                last = first_vector(panel + 1, outer->inputs) * LANES;
        float *to = right + first * steps + step * (last - first);
        for (int64_t c = first; c < last; c += LANES) {
            vec x = *(const vec *)(row + c);
            *(vec *)(to + c - first) = pair == 2 ? pair_up(x, next ? *(const vec *)(next + c) : (vec){}) : x;
        }
    }
}

static void fill_right(const Outer *outer, float *right, const Arena *arena) {
    int64_t wide = round_up(outer->inputs, LANES), pair = numbers_a_step(outer->type),
            steps = steps_of(outer->rows, outer->type);
#pragma omp parallel
    {
        float *numbers = own_floats(arena), *rows = numbers + wide;
        memset(numbers, 0, 3 * wide * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t step = 0; step < steps; step++) {
            int has_next = pair == 2 && 2 * step + 1 < outer->rows;
            input_row(outer, step * pair, numbers, rows);
            if (has_next) input_row(outer, 2 * step + 1, numbers, rows + wide);
            write_step(outer, right, step, rows, has_next ? rows + wide : NULL);
        }
    }
}

/* Outputs `first` and after of some rows as the transposed left factor (steps of the rows, `high`), and their sums. */
static void fill_left(float *left, float *sums, const Outer *outer, int64_t row, int64_t rows, int64_t first,
                      int64_t high) {
    int64_t pair = numbers_a_step(outer->type), last = row + rows;
    for (int64_t step = 0; row < last; row += pair, step++)
        for (int64_t c = 0; c < least(high, outer->outputs - first); c += LANES) {
            int64_t at = row * outer->outputs + first + c, count = least(high - c, outer->outputs - first - c);
            vec x = read(outer->d_out, at, count, outer->type), next = {};
            if (pair == 2 && row + 1 < last) next = read(outer->d_out, at + outer->outputs, count, outer->type);
            *(vec *)(left + step * high + c) = pair == 2 ? join(x, next) : x;
            *(vec *)(sums + c) += x + next;
        }
}

/* Rows `first` and after of the gradient of the weights, at most `high`, summed over a part of the tokens. */
static void run_task(const Outer *outer, const float *right, int64_t part, int64_t first, int64_t high, float *space) {
    int64_t wide = round_up(outer->inputs, LANES), pair = numbers_a_step(outer->type),
            blocks = (outer->rows + DEPTH - 1) / DEPTH;
    int64_t steps = steps_of(outer->rows, outer->type);
    Rows d_out = {(void *)outer->d_out, outer->outputs, outer->type};
    float *c = space, *left = c + high * wide, *sums = left + DEPTH * high;
    memset(c, 0, high * wide * sizeof(float));
    memset(sums, 0, high * sizeof(float));
    for (int64_t block = part_begin(part, outer->parts, blocks); block < part_begin(part + 1, outer->parts, blocks);
         block++) {
        int64_t row = block * DEPTH, rows = least(DEPTH, outer->rows - row), next = row + DEPTH;
        Product p = {.depth = steps_of(rows, outer->type),
                     .a = left,
                     .a_row = 1,
                     .a_step = high,
                     .begin_row = wide,
                     .c_row = wide};
        fill_left(left, sums, outer, row, rows, first, high);
        prefetch(&d_out, next, least(DEPTH, outer->rows - next), first, least(high, outer->outputs - first));
        for (int64_t panel = 0; panel < panels_of(outer->inputs); panel++) {
            int64_t vector = first_vector(panel, outer->inputs),
                    vectors = first_vector(panel + 1, outer->inputs) - vector;
            p.b_step = vectors * LANES;
            p.b = right + vector * LANES * steps + row / pair * p.b_step;
            p.begin = p.c = c + vector * LANES;
            multiply(least(high, outer->outputs - first), vectors, &p, outer->type);
        }
    }
    for (int64_t r = 0; r < high && first + r < outer->outputs; r++) {
        int64_t output = part * outer->outputs + first + r;
        memcpy(outer->d_weight + output * outer->inputs, c + r * wide, outer->inputs * sizeof(float));
        outer->d_bias[output] = sums[r];
    }
}

/* Gradients of weights and bias. Returns 0, or 1 without memory. */
int linear_outer(const Outer *outer) {
    int64_t wide = round_up(outer->inputs, LANES), high = wide <= 1024 ? 96 : 48;
    int64_t ranges = (outer->outputs + high - 1) / high;
    int64_t scratch = high * wide + (DEPTH + 1) * high + LANES, rows = 3 * wide;
    Arena *arena = take_arena((steps_of(outer->rows, outer->type) + 1) * wide, scratch > rows ? scratch : rows);
    if (arena == NULL) return 1;
    float *right = shared_floats(arena);
    fill_right(outer, right, arena);
#pragma omp parallel
    {
        float *space = own_floats(arena);
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < ranges * outer->parts; job++)
            run_task(outer, right, job / ranges, job % ranges * high, high, space);
    }
    give_back(arena);
    return 0;
}
