/* Shared by the forward and backward pass of attention: the task, and reading a window into a thread's scratch memory.
 *
 * Names: B images, H W grid, h heads, d channels a head, N = rows * columns tokens of a window. A `stride` is the
 * distance between two tokens of a tensor, counted in numbers.
 */

#ifndef GLOBALVIT_ATTENTION_H
#define GLOBALVIT_ATTENTION_H

#include "arena.h"
#include "products.h"

typedef struct {
    int64_t images, height, width; /* of the grid; windows may extend beyond its lower and right edge */
    int64_t rows, columns;         /* of a window */
    int64_t heads, dim;            /* dim: channels a head */
    int64_t type;
    const void *query, *key, *value;
    const void *no_query, *no_key, *no_value; /* (h * d) each, for tokens outside the grid, or NULL */
    int64_t stride;                           /* of keys, values and local queries */
    int64_t is_global;                        /* queries are (B, h, N, d), contiguous, in `type` */
    const void *table; /* ((2 rows - 1) (2 columns - 1), h), query minus key ascending, or NULL */
    int64_t table_type;
    const float *taps;    /* (9, h * d): 3x3 convolution of the values inside a window, or NULL */
    const float *offsets; /* (h * d): its bias */
    float scale;
} Task;

/* Sizes of a window's matrices: N tokens, rounded up to whole vectors (`wide`), and d channels, rounded up to whole
 * vectors (`deep`) and in steps. */
typedef struct {
    int64_t tokens, wide, dim, deep, channel_steps, token_steps;
} Sizes;

INLINE Sizes sizes_of(const Task *task) {
    int64_t N = task->rows * task->columns, d = task->dim;
    return (Sizes){N, round_up(N, LANES), d, round_up(d, LANES), steps_of(d, task->type), steps_of(N, task->type)};
}

INLINE float *take(float **free_space, int64_t count) {
    float *taken = *free_space;
    *free_space += round_up(count, 16);
    return taken;
}

INLINE int64_t windows_across(const Task *task) { return (task->width + task->columns - 1) / task->columns; }
INLINE int64_t windows_of(const Task *task) {
    return (task->height + task->rows - 1) / task->rows * windows_across(task);
}

/* Positions of a window's tokens in the grids of all images, -1 for those outside. */
INLINE void find_places(int64_t *places, const Task *task, int64_t image, int64_t window) {
    int64_t across = windows_across(task), top = window / across * task->rows, left = window % across * task->columns;
    for (int64_t row = 0; row < task->rows; row++)
        for (int64_t column = 0; column < task->columns; column++) {
            int is_outside = top + row >= task->height || left + column >= task->width;
            *places++ = is_outside ? -1 : (image * task->height + top + row) * task->width + left + column;
        }
}

/* The row of channels of one token and head. */
INLINE const void *channels_of(const Task *task, const void *grid, const void *outside, int64_t stride, int64_t place,
                               int64_t head) {
    int64_t at = head * task->dim * bytes_of(task->type);
    if (place < 0) return (const char *)outside + at;
    return (const char *)grid + place * stride * bytes_of(task->type) + at;
}

/* Addresses of the channels of a window's tokens. */
INLINE void find_rows(const void **rows, const Task *task, const void *grid, const void *outside, int64_t stride,
                      const int64_t *places, int64_t head) {
    for (int64_t t = 0; t < task->rows * task->columns; t++)
        rows[t] = channels_of(task, grid, outside, stride, places[t], head);
}

/* Prefetch the rows of the next window. They are far apart, and waiting for them one by one takes longer than all sums.
 */
static inline void prefetch(const Task *task, const void *grid, int64_t stride, int64_t image, int64_t window,
                            int64_t head) {
    int64_t size = bytes_of(task->type), at = head * task->dim * size, across = windows_across(task);
    int64_t top = window / across * task->rows, left = window % across * task->columns;
    int64_t rows = least(task->rows, task->height - top), columns = least(task->columns, task->width - left);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            int64_t place = (image * task->height + top + row) * task->width + left + column;
            for (int64_t byte = at + place * stride * size, end = byte + task->dim * size; byte < end; byte += 64)
                __builtin_prefetch((const char *)grid + byte, 0, 2);
        }
}
static inline void prefetch_window(const Task *task, int64_t image, int64_t window, int64_t head) {
    if (!task->is_global) prefetch(task, task->query, task->stride, image, window, head);
    prefetch(task, task->key, task->stride, image, window, head);
    prefetch(task, task->value, task->stride, image, window, head);
}

/* Rows as the left factor of a product: (count, steps of the channels). */
INLINE void fill_left(float *to, const void **rows, int64_t count, const Sizes *sizes, int64_t type) {
    int64_t pair = numbers_a_step(type);
    for (int64_t t = 0; t < count; t++)
        for (int64_t s = 0; s < sizes->channel_steps; s += LANES)
            write(to + t * sizes->channel_steps, s, read_steps(rows[t], s, sizes->dim - s * pair, type, type),
                  sizes->channel_steps - s, 0);
}

/* Rows transposed, as the right factor of a product along the channels: (steps of the channels, padded N). */
INLINE void fill_transposed(float *to, const void **rows, const Sizes *sizes, int64_t type) {
    int64_t pair = numbers_a_step(type);
    for (int64_t t = 0; t < sizes->tokens; t += LANES)
        for (int64_t s = 0; s < sizes->channel_steps; s += LANES) {
            vec square[LANES];
            for (int r = 0; r < LANES; r++)
                square[r] =
                    t + r < sizes->tokens ? read_steps(rows[t + r], s, sizes->dim - s * pair, type, type) : (vec){};
            transpose(square);
            for (int i = 0; i < LANES && s + i < sizes->channel_steps; i++)
                *(vec *)(to + (s + i) * sizes->wide + t) = square[i];
        }
}

/* Rows of floats: (count, padded d). */
INLINE void fill_floats(float *to, const void **rows, int64_t count, const Sizes *sizes, int64_t type) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < sizes->deep; c += LANES)
            *(vec *)(to + t * sizes->deep + c) = read(rows[t], c, sizes->dim - c, type);
}

/* Rows as the right factor of a product along the tokens: (steps of the tokens, padded d). */
INLINE void fill_right(float *to, const void **rows, const Sizes *sizes, int64_t type) {
    for (int64_t t = 0; numbers_a_step(type) == 2 && t < sizes->tokens; t += 2)
        for (int64_t c = 0; c < sizes->deep; c += LANES) {
            vec first = read(rows[t], c, sizes->dim - c, 1), second = {};
            if (t + 1 < sizes->tokens) second = read(rows[t + 1], c, sizes->dim - c, 1);
            *(vec *)(to + t / 2 * sizes->deep + c) = join(first, second);
        }
    if (numbers_a_step(type) == 1) fill_floats(to, rows, sizes->tokens, sizes, type);
}

/* Index of the table's first entry for a query and the keys of a row of the window. */
INLINE int64_t entry(const Task *task, int64_t query, int64_t key_row) {
    int64_t wide = 2 * task->columns - 1, down = key_row - query / task->columns + task->rows - 1;
    return down * wide + task->columns - 1 - query % task->columns;
}
INLINE int64_t entries_of(const Task *task) { return (2 * task->rows - 1) * (2 * task->columns - 1); }

/* A head's entries of the table, key minus query ascending, divided by the scale, which is applied after they are
 * added. */
INLINE void read_table(float *entries, const Task *task, int64_t head) {
    int64_t count = entries_of(task);
    for (int64_t i = 0; i < count; i++) {
        int64_t at = (count - 1 - i) * task->heads + head;
        float bias =
            task->table_type == 0 ? ((const float *)task->table)[at] : from_bf16(((const bf16 *)task->table)[at]);
        entries[i] = bias / task->scale;
    }
}

/* Initial logits of every query: a head's position biases, and minus infinity in the lanes beyond the last key. Without
 * a table one row serves all queries. `entries` has room for the head's part of the table. */
INLINE void fill_bias(float *bias, float *entries, const Task *task, const Sizes *sizes, int64_t head) {
    int64_t queries = task->table ? sizes->tokens : 1;
    if (task->table) read_table(entries, task, head);
    for (int64_t q = 0; q < queries; q++, bias += sizes->wide) {
        for (int64_t t = 0; t < sizes->wide; t++) bias[t] = t < sizes->tokens ? 0 : -INFINITY;
        for (int64_t row = 0; task->table && row < task->rows; row++)
            for (int64_t c = 0; c < task->columns; c += LANES)
                write(bias, row * task->columns + c, read(entries, entry(task, q, row) + c, task->columns - c, 0),
                      task->columns - c, 0);
    }
}

/* From a row of unscaled logits e^(logit - largest), not yet divided by their sum, which is returned. `to` may be the
 * row itself. The largest logit is subtracted before the scaling, so that its exponential is exactly 1. */
INLINE float exponentials(const float *row, int64_t wide, float scale, int64_t type, void *to, int64_t to_type) {
    vec top = *(const vec *)row, sum = {};
    for (int64_t t = LANES; t < wide; t += LANES) top = larger(top, *(const vec *)(row + t));
    vec shift = splat(largest(top));
    float factor = scale * 1.44269504f;
    for (int64_t t = 0; t < wide; t += LANES) {
        vec weights = power_of_two(at_least(-126.0f, (*(const vec *)(row + t) - shift) * factor), type);
        write(to, t, weights, LANES, to_type);
        sum += weights;
    }
    return total(sum);
}

/* Logits of some queries: `left` (queries, steps) times transposed keys, added to the biases, whose rows are `bias_row`
 * apart. */
INLINE void multiply_logits(float *logits, const float *left, const float *keys, const float *bias, int64_t bias_row,
                            int64_t queries, const Sizes *sizes, int64_t type) {
    Product p = {.depth = sizes->channel_steps,
                 .a = left,
                 .a_row = sizes->channel_steps,
                 .a_step = 1,
                 .b = keys,
                 .b_step = sizes->wide,
                 .begin = bias,
                 .begin_row = bias_row,
                 .c = logits,
                 .c_row = sizes->wide};
    multiply(queries, sizes->wide / LANES, &p, type);
}

/* Operands and results of up to ROWS queries. */
typedef struct {
    const float *keys, *values; /* transposed keys; values as right factor */
    float *logits, *weights;    /* (ROWS, padded N); rounded to pairs */
    float *out;                 /* (ROWS, padded d), to be divided by `totals` */
    float totals[ROWS];
} Answers;

INLINE void answer(Answers *answers, const float *left, const float *bias, int64_t bias_row, int64_t count, float scale,
                   const Sizes *s, int64_t type) {
    int is_paired = numbers_a_step(type) == 2;
    Product p = {.depth = s->token_steps,
                 .a = is_paired ? answers->weights : answers->logits,
                 .a_row = is_paired ? s->wide / 2 : s->wide,
                 .a_step = 1,
                 .b = answers->values,
                 .b_step = s->deep,
                 .begin = zeros,
                 .c = answers->out,
                 .c_row = s->deep};
    multiply_logits(answers->logits, left, answers->keys, bias, bias_row, count, s, type);
    for (int64_t r = 0; r < count; r++)
        answers->totals[r] =
            exponentials(answers->logits + r * s->wide, s->wide, scale, type, (float *)p.a + r * p.a_row, is_paired);
    multiply(count, s->deep / LANES, &p, type);
}

#endif
