/* Backward pass of attention inside the windows or stripes of a channels-last token grid.
 *
 * Weights are computed again. Results do not depend on the number of threads: each job adds its sums in memory of its
 * own.
 */

#include "attention.h"

/* Outputs of the backward pass. Sums over windows are split into parts, one for each job, which the caller adds in
 * order: (images, heads, parts, ...). Gradients of local queries have the layout of the queries, those of global ones
 * are such sums. */
typedef struct {
    void *query, *key, *value;
    int64_t stride;
    float *global_query; /* (B, h, parts, N, d) or NULL */
    float *table;        /* (B, h, parts, 2 rows - 1, 2 columns - 1) or NULL */
    float *taps;         /* (B, h, parts, 9, d) or NULL */
    float *offsets;      /* (B, h, parts, d) or NULL */
    int64_t parts, windows_a_part;
} Gradients;

const int64_t size_of_gradients = sizeof(Gradients);

/* A matrix of channels in every form that the products read. */
typedef struct {
    const void **rows;
    float *left, *transposed, *right;
} Operand;

/* Scratch memory of one thread. */
typedef struct {
    Sizes sizes;
    int64_t *places;
    Operand query, key, value, d_out;
    float *entries;       /* of the table, of `head` */
    float *bias, *d_bias; /* (N, padded N), of `head` */
    int64_t head;
    float *weights, *gradients;                       /* (N, padded N), or (ROWS, padded N) with pairs */
    float *weights_transposed, *gradients_transposed; /* pairs of queries (steps of N, padded N) */
    float *gradients_left;                            /* pairs of keys (ROWS, padded N / 2) */
    float *d_query, *d_key, *d_value;                 /* (N, padded d) */
    float *values, *d_outs;                           /* (N, padded d), if values are convolved */
    float *d_taps;                                    /* (10, padded d) */
} Work;

static Operand take_operand(float **rest, const Sizes *s) {
    Operand taken = {.rows = (const void **)take(rest, 2 * s->tokens)};
    taken.left = take(rest, s->tokens * s->channel_steps);
    taken.transposed = take(rest, s->channel_steps * s->wide);
    taken.right = take(rest, s->tokens * s->deep);
    return taken;
}

static int64_t scratch_size(const Task *task) {
    Sizes s = sizes_of(task);
    int64_t square = s.tokens * s.wide, strip = s.tokens * s.deep,
            operand = 2 * s.tokens + s.channel_steps * (s.tokens + s.wide);
    int64_t entries = task->table ? entries_of(task) : 0, is_paired = numbers_a_step(task->type) == 2;
    int64_t rows = is_paired ? ROWS * s.wide : square, transposed = is_paired ? s.token_steps * s.wide : 0;
    return 2 * s.tokens + entries + 4 * (operand + strip) + 2 * (square + rows + transposed) + ROWS * s.wide +
           5 * strip + 10 * s.deep + 32 * 16;
}

static Work prepare(float *space, const Task *task) {
    Sizes s = sizes_of(task);
    int64_t square = s.tokens * s.wide, strip = s.tokens * s.deep, is_paired = numbers_a_step(task->type) == 2;
    int64_t rows = is_paired ? ROWS * s.wide : square, transposed = is_paired ? s.token_steps * s.wide : 0;
    float *rest = space;
    Work work = {.sizes = s, .head = -1, .places = (int64_t *)take(&rest, 2 * s.tokens)};
    work.query = take_operand(&rest, &s);
    work.key = take_operand(&rest, &s);
    work.value = take_operand(&rest, &s);
    work.d_out = take_operand(&rest, &s);
    work.entries = take(&rest, task->table ? entries_of(task) : 0);
    work.bias = take(&rest, square);
    work.d_bias = take(&rest, square);
    work.weights = take(&rest, rows);
    work.gradients = take(&rest, rows);
    work.weights_transposed = take(&rest, transposed);
    work.gradients_transposed = take(&rest, transposed);
    work.gradients_left = take(&rest, ROWS * s.wide);
    work.d_query = take(&rest, strip);
    work.d_key = take(&rest, strip);
    work.d_value = take(&rest, strip);
    work.values = take(&rest, strip);
    work.d_outs = take(&rest, strip);
    work.d_taps = take(&rest, 10 * s.deep);
    return work;
}

static void read_window(Work *work, const Task *task, int64_t image, int64_t window, int64_t head, const void *d_out,
                        int64_t d_out_stride) {
    const Sizes *s = &work->sizes;
    find_places(work->places, task, image, window);
    if (task->is_global) {
        int64_t first = (image * task->heads + head) * s->tokens;
        for (int64_t t = 0; t < s->tokens; t++)
            work->query.rows[t] = (const char *)task->query + (first + t) * task->dim * bytes_of(task->type);
    } else
        find_rows(work->query.rows, task, task->query, NULL, task->stride, work->places, head);
    find_rows(work->key.rows, task, task->key, NULL, task->stride, work->places, head);
    find_rows(work->value.rows, task, task->value, NULL, task->stride, work->places, head);
    find_rows(work->d_out.rows, task, d_out, NULL, d_out_stride, work->places, head);
    fill_left(work->query.left, work->query.rows, s->tokens, s, task->type);
    fill_right(work->query.right, work->query.rows, s, task->type);
    fill_transposed(work->key.transposed, work->key.rows, s, task->type);
    fill_right(work->key.right, work->key.rows, s, task->type);
    fill_transposed(work->value.transposed, work->value.rows, s, task->type);
    fill_left(work->d_out.left, work->d_out.rows, s->tokens, s, task->type);
    fill_right(work->d_out.right, work->d_out.rows, s, task->type);
    if (!task->taps) return;
    fill_floats(work->values, work->value.rows, s->tokens, s, task->type);
    fill_floats(work->d_outs, work->d_out.rows, s->tokens, s, task->type);
}

/* Turn a row of logits into weights and the gradients of the weights into those of the logits, which are added to the
 * gradients of the biases. */
INLINE void softmax_back(float *weights, float *gradients, float *d_bias, int64_t wide, const Task *task) {
    vec factor = splat(1.0f / exponentials(weights, wide, task->scale, task->type, weights, 0)), sum = {};
    for (int64_t t = 0; t < wide; t += LANES) {
        vec weight = *(vec *)(weights + t) * factor;
        *(vec *)(weights + t) = weight;
        sum += weight * *(vec *)(gradients + t);
    }
    vec mean = splat(total(sum));
    for (int64_t t = 0; t < wide; t += LANES) {
        vec x = *(vec *)(weights + t) * (*(vec *)(gradients + t) - mean);
        *(vec *)(gradients + t) = x;
        if (task->table) *(vec *)(d_bias + t) += x;
    }
}

/* Rows of floats as steps of a transposed left factor: pairs of consecutive rows. */
static void pair_rows(float *to, const float *rows, int64_t count, int64_t wide) {
    for (int64_t r = 0; r < count; r += 2)
        for (int64_t t = 0; t < wide; t += LANES) {
            const float *at = rows + r * wide + t;
            *(vec *)(to + r / 2 * wide + t) =
                pair_up(*(const vec *)at, r + 1 < count ? *(const vec *)(at + wide) : (vec){});
        }
}

/* Round numbers to bfloat16: two consecutive ones are a pair. */
static void round_row(float *to, const float *from, int64_t count) {
    for (int64_t t = 0; t < count; t += LANES) write(to, t, *(const vec *)(from + t), LANES, 1);
}

/* Weights and gradients of up to ROWS queries; all but the last query come in pairs. */
static void differentiate(Work *work, const Task *task, int64_t first, int64_t count) {
    const Sizes *s = &work->sizes;
    int64_t is_paired = numbers_a_step(task->type) == 2, bias_row = task->table ? s->wide : 0;
    float *weights = work->weights + (is_paired ? 0 : first * s->wide);
    float *gradients = work->gradients + (is_paired ? 0 : first * s->wide);
    Product d_weights = {.depth = s->channel_steps,
                         .a = work->d_out.left + first * s->channel_steps,
                         .a_row = s->channel_steps,
                         .a_step = 1,
                         .b = work->value.transposed,
                         .b_step = s->wide,
                         .begin = zeros,
                         .c = gradients,
                         .c_row = s->wide};
    Product d_query = {.depth = s->token_steps,
                       .a = is_paired ? work->gradients_left : gradients,
                       .a_row = is_paired ? s->wide / 2 : s->wide,
                       .a_step = 1,
                       .b = work->key.right,
                       .b_step = s->deep,
                       .begin = zeros,
                       .c = work->d_query + first * s->deep,
                       .c_row = s->deep};
    multiply_logits(weights, work->query.left + first * s->channel_steps, work->key.transposed,
                    work->bias + first * bias_row, bias_row, count, s, task->type);
    multiply(count, s->wide / LANES, &d_weights, task->type);
    for (int64_t r = 0; r < count; r++)
        softmax_back(weights + r * s->wide, gradients + r * s->wide, work->d_bias + (first + r) * s->wide, s->wide,
                     task);
    if (is_paired) {
        pair_rows(work->weights_transposed + first / 2 * s->wide, weights, count, s->wide);
        pair_rows(work->gradients_transposed + first / 2 * s->wide, gradients, count, s->wide);
        round_row(work->gradients_left, gradients, count * s->wide);
    }
    multiply(count, s->deep / LANES, &d_query, task->type);
}

/* c (N, padded d) = the transposed left factor times rows of tokens: sums over the queries. */
static void multiply_transposed(float *c, const float *transposed, const float *right, const Sizes *s, int64_t type) {
    Product p = {.depth = s->token_steps,
                 .a = transposed,
                 .a_row = 1,
                 .a_step = s->wide,
                 .b = right,
                 .b_step = s->deep,
                 .begin = zeros,
                 .c = c,
                 .c_row = s->deep};
    multiply(s->tokens, s->deep / LANES, &p, type);
}

/* Few queries at a time, because intermediate results of all of them do not fit into the second level of cache. */
static void attend_back(Work *work, const Task *task) {
    const Sizes *s = &work->sizes;
    int64_t is_paired = numbers_a_step(task->type) == 2, pairs = (s->tokens + 1) / 2,
            tiles = (2 * pairs + ROWS - 1) / ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        int64_t first = 2 * part_begin(t, tiles, pairs), last = least(2 * part_begin(t + 1, tiles, pairs), s->tokens);
        differentiate(work, task, first, last - first);
    }
    multiply_transposed(work->d_value, is_paired ? work->weights_transposed : work->weights, work->d_out.right, s,
                        task->type);
    multiply_transposed(work->d_key, is_paired ? work->gradients_transposed : work->gradients, work->query.right, s,
                        task->type);
}

/* Gradients of the convolution of the values: those of the values, and sums of those of its taps and offsets. */
static void convolve_back(Work *work, const Task *task, int64_t head) {
    int64_t deep = work->sizes.deep, d = task->dim;
    for (int64_t t = 0; t < work->sizes.tokens; t++)
        for (int64_t c = 0; c < deep; c += LANES) {
            int64_t row = t / task->columns, column = t % task->columns;
            vec gradient = *(vec *)(work->d_outs + t * deep + c);
            *(vec *)(work->d_taps + 9 * deep + c) += gradient;
            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t y = row + tap / 3 - 1, x = column + tap % 3 - 1, at = (y * task->columns + x) * deep + c;
                if (y < 0 || y >= task->rows || x < 0 || x >= task->columns) continue;
                vec weight = read(task->taps, (tap * task->heads + head) * d + c, d - c, 0);
                *(vec *)(work->d_value + at) += weight * gradient;
                *(vec *)(work->d_taps + tap * deep + c) += *(vec *)(work->values + at) * gradient;
            }
        }
}

static void write_rows(void *to, const float *from, float factor, const Work *work, const Task *task, int64_t stride,
                       int64_t head) {
    for (int64_t t = 0; t < work->sizes.tokens; t++)
        for (int64_t c = 0; c < task->dim; c += LANES)
            write(to, work->places[t] * stride + head * task->dim + c,
                  *(const vec *)(from + t * work->sizes.deep + c) * factor, task->dim - c, task->type);
}

static void window_back(Work *work, const Task *task, const Gradients *to, int64_t head, int64_t job) {
    int64_t d = task->dim;
    attend_back(work, task);
    if (task->taps) convolve_back(work, task, head);
    if (task->is_global) {
        float *sums = to->global_query + job * work->sizes.tokens * d;
        for (int64_t t = 0; t < work->sizes.tokens; t++)
            for (int64_t c = 0; c < d; c++) sums[t * d + c] += work->d_query[t * work->sizes.deep + c] * task->scale;
    } else
        write_rows(to->query, work->d_query, task->scale, work, task, to->stride, head);
    write_rows(to->key, work->d_key, task->scale, work, task, to->stride, head);
    write_rows(to->value, work->d_value, 1.0f, work, task, to->stride, head);
}

/* Write the sums of a job's windows to its own memory, which is 0 before. */
static void write_sums(const Work *work, const Task *task, const Gradients *to, int64_t job) {
    int64_t d = task->dim, deep = work->sizes.deep;
    for (int64_t q = 0; task->table && q < work->sizes.tokens; q++)
        for (int64_t row = 0; row < task->rows; row++) {
            float *sums = to->table + job * entries_of(task) + entry(task, q, row);
            const float *from = work->d_bias + q * work->sizes.wide + row * task->columns;
            for (int64_t c = 0; c < task->columns; c += LANES) {
                int64_t count = task->columns - c;
                write(sums, c, read(sums, c, count, 0) + read(from, c, count, 0), count, 0);
            }
        }
    if (!task->taps) return;
    for (int64_t tap = 0; tap < 9; tap++)
        memcpy(to->taps + (job * 9 + tap) * d, work->d_taps + tap * deep, d * sizeof(float));
    memcpy(to->offsets + job * d, work->d_taps + 9 * deep, d * sizeof(float));
}

/* One job: some windows of an image and a head. */
static void run_job(Work *work, const Task *task, const Gradients *to, int64_t job, const void *d_out,
                    int64_t d_out_stride) {
    int64_t head = job / to->parts % task->heads, image = job / to->parts / task->heads;
    int64_t first = job % to->parts * to->windows_a_part, last = least(first + to->windows_a_part, windows_of(task));
    if (work->head != head) fill_bias(work->bias, work->entries, task, &work->sizes, head);
    work->head = head;
    if (task->table) memset(work->d_bias, 0, work->sizes.tokens * work->sizes.wide * sizeof(float));
    memset(work->d_taps, 0, 10 * work->sizes.deep * sizeof(float));
    for (int64_t window = first; window < last; window++) {
        read_window(work, task, image, window, head, d_out, d_out_stride);
        if (window + 1 < last) {
            prefetch_window(task, image, window + 1, head);
            prefetch(task, d_out, d_out_stride, image, window + 1, head);
        }
        window_back(work, task, to, head, job);
    }
    write_sums(work, task, to, job);
}

/* The order of the jobs. Images that are still in the caches are worth more than the biases of a head, unless an image
 * has no more windows than one job takes: then heads change last. */
static int64_t job_of(int64_t turn, const Task *task, const Gradients *to) {
    return to->parts > 1 ? turn : turn % task->images * task->heads + turn / task->images;
}

/* Gradients of everything that `attention_forward` reads; windows divide the grid. Returns 0, or 1 without memory. */
int attention_backward(const Task *task, const void *d_out, int64_t d_out_stride, const Gradients *to) {
    int64_t jobs = task->images * task->heads * to->parts;
    Arena *arena = take_arena(0, scratch_size(task));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Work work = prepare(own_floats(arena), task);
#pragma omp for schedule(dynamic, 1)
        for (int64_t turn = 0; turn < jobs; turn++)
            run_job(&work, task, to, job_of(turn, task, to), d_out, d_out_stride);
    }
    give_back(arena);
    return 0;
}
