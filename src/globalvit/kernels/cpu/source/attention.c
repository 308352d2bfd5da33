/* Forward pass of attention inside the windows or stripes of a channels-last token grid.
 *
 * Windows are read in place from the outputs of the Linear layers, and results are written in place for the next layer:
 * no windows are copied, no query is repeated, no grid is padded. A thread's scratch memory fits the first and second
 * level of cache; sums are float32.
 */

#include <omp.h>

#include "attention.h"

const int64_t size_of_task = sizeof(Task);

/* Scratch memory of one thread. */
typedef struct {
    Sizes sizes;
    int64_t *places;
    const void **rows;
    float *entries, *bias; /* of the table; (N, padded N); both for `head` */
    int64_t head;
    float *query;  /* left factor */
    float *framed; /* values that are convolved, in a frame of zeros: (rows + 2, columns + 2, padded d) */
    float *taps;   /* (9, padded d), and offsets */
    float *keys, *values;
    Answers answers;
} Work;

static int64_t scratch_size(const Task *task) {
    Sizes s = sizes_of(task);
    int64_t N = s.tokens, bias = (task->table ? N : 1) * s.wide;
    int64_t framed = task->taps ? (task->rows + 2) * (task->columns + 2) * s.deep : 0;
    int64_t entries = task->table ? entries_of(task) : 0;
    return 4 * N + entries + bias + N * s.channel_steps + s.channel_steps * s.wide + (N + 10) * s.deep + framed +
           2 * ROWS * s.wide + ROWS * s.deep + 16 * 16;
}

static Work prepare(float *space, const Task *task) {
    Sizes s = sizes_of(task);
    int64_t N = s.tokens, framed = task->taps ? (task->rows + 2) * (task->columns + 2) * s.deep : 0;
    float *rest = space;
    Work work = {.sizes = s, .head = -1};
    work.places = (int64_t *)take(&rest, 2 * N);
    work.rows = (const void **)take(&rest, 2 * N);
    work.entries = take(&rest, task->table ? entries_of(task) : 0);
    work.bias = take(&rest, (task->table ? N : 1) * s.wide);
    work.query = take(&rest, N * s.channel_steps);
    work.keys = take(&rest, s.channel_steps * s.wide);
    work.values = take(&rest, N * s.deep);
    work.framed = take(&rest, framed);
    memset(work.framed, 0, framed * sizeof(float));
    work.taps = take(&rest, 10 * s.deep);
    work.answers = (Answers){.keys = work.keys, .values = work.values};
    work.answers.logits = take(&rest, ROWS * s.wide);
    work.answers.weights = take(&rest, ROWS * s.wide);
    work.answers.out = take(&rest, ROWS * s.deep);
    return work;
}

/* Prepare what all windows of a head have in common. */
static void begin_head(Work *work, const Task *task, int64_t head) {
    int64_t d = task->dim, all = task->heads * d, deep = work->sizes.deep;
    if (work->head == head) return;
    work->head = head;
    fill_bias(work->bias, work->entries, task, &work->sizes, head);
    for (int64_t tap = 0; task->taps && tap < 10; tap++) {
        const float *from = tap < 9 ? task->taps + tap * all : task->offsets;
        for (int64_t c = 0; c < deep; c += LANES)
            *(vec *)(work->taps + tap * deep + c) = read(from, head * d + c, d - c, 0);
    }
}

static void frame(Work *work, const Task *task, const void **rows) {
    const Sizes *s = &work->sizes;
    for (int64_t row = 0; row < task->rows; row++)
        fill_floats(work->framed + ((row + 1) * (task->columns + 2) + 1) * s->deep, rows + row * task->columns,
                    task->columns, s, task->type);
}

static void read_window(Work *work, const Task *task, int64_t image, int64_t window, int64_t head) {
    Sizes *sizes = &work->sizes;
    const void **rows = work->rows;
    find_places(work->places, task, image, window);
    if (task->is_global) {
        int64_t first = (image * task->heads + head) * sizes->tokens;
        for (int64_t t = 0; t < sizes->tokens; t++)
            rows[t] = (const char *)task->query + (first + t) * task->dim * bytes_of(task->type);
    } else
        find_rows(rows, task, task->query, task->no_query, task->stride, work->places, head);
    fill_left(work->query, rows, sizes->tokens, sizes, task->type);
    find_rows(rows, task, task->key, task->no_key, task->stride, work->places, head);
    fill_transposed(work->keys, rows, sizes, task->type);
    find_rows(rows, task, task->value, task->no_value, task->stride, work->places, head);
    fill_right(work->values, rows, sizes, task->type);
    if (task->taps) frame(work, task, rows);
}

/* The 3x3 convolution of the values around one token, some of its channels. */
INLINE vec convolve(const Work *work, const Task *task, int64_t token, int64_t channel) {
    int64_t deep = work->sizes.deep, row = task->columns + 2;
    const float *taps = work->taps + channel, *values = work->framed + channel;
    vec sum = *(vec *)(taps + 9 * deep);
    values += (token / task->columns * row + token % task->columns) * deep;
    for (int y = 0; y < 3; y++, values += row * deep, taps += 3 * deep)
        for (int x = 0; x < 3; x++) sum += *(vec *)(taps + x * deep) * *(vec *)(values + x * deep);
    return sum;
}

/* Write the results of some queries to the positions of their tokens. */
static void write_answers(const Work *work, const Task *task, int64_t first, int64_t count, void *out,
                          int64_t out_stride, int64_t head) {
    int64_t d = task->dim, deep = work->sizes.deep;
    for (int64_t r = 0; r < count; r++) {
        int64_t place = work->places[first + r];
        float factor = 1.0f / work->answers.totals[r];
        for (int64_t c = 0; place >= 0 && c < d; c += LANES) {
            vec x = *(vec *)(work->answers.out + r * deep + c) * factor;
            if (task->taps) x += convolve(work, task, first + r, c);
            write(out, place * out_stride + head * d + c, x, d - c, task->type);
        }
    }
}

/* Whether all of these tokens are outside the grid, so that their results are not needed. */
static int is_outside(const int64_t *places, int64_t count) {
    for (int64_t t = 0; t < count; t++)
        if (places[t] >= 0) return 0;
    return 1;
}

static void attend(Work *work, const Task *task, void *out, int64_t out_stride) {
    const Sizes *s = &work->sizes;
    int64_t N = s->tokens, tiles = (N + ROWS - 1) / ROWS, bias_row = task->table ? s->wide : 0;
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t first = part_begin(tile, tiles, N), count = part_begin(tile + 1, tiles, N) - first;
        if (is_outside(work->places + first, count)) continue;
        answer(&work->answers, work->query + first * s->channel_steps, work->bias + first * bias_row, bias_row, count,
               task->scale, s, task->type);
        write_answers(work, task, first, count, out, out_stride, work->head);
    }
}

/* Attend in every window; write (B, H, W, h * d) with `out_stride` between tokens. Returns 0, or 1 without memory. */
int attention_forward(const Task *task, void *out, int64_t out_stride) {
    int64_t windows = windows_of(task), jobs = task->images * windows * task->heads;
    int64_t chunk = least(16, jobs / (8 * omp_get_max_threads()) + 1);
    Arena *arena = take_arena(0, scratch_size(task));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Work work = prepare(own_floats(arena), task);
        /* Heads change last, so that a thread's biases serve many windows. */
#pragma omp for schedule(dynamic, chunk)
        for (int64_t job = 0; job < jobs; job++) {
            int64_t window = job % windows, image = job / windows % task->images, head = job / windows / task->images;
            begin_head(&work, task, head);
            read_window(&work, task, image, window, head);
            if ((job + 1) % windows) prefetch_window(task, image, window + 1, head);
            attend(&work, task, out, out_stride);
        }
    }
    give_back(arena);
    return 0;
}
