/* Forward pass of attention between whole sequences: GPViT's groups attend to all tokens of an image, and tokens to the
 * groups.
 */

#include <omp.h>

#include "attention.h"

#define CHUNK 96 /* queries read at once */

typedef struct {
    int64_t images, queries, keys, heads, dim, type;
    const void *query, *key, *value; /* (B, queries, h * d) and twice (B, keys, h * d), contiguous, and so is out */
    void *out;
    float scale;
} Sequences;

const int64_t size_of_sequences = sizeof(Sequences);

/* Scratch memory of one thread. */
typedef struct {
    Sizes sizes;
    const void **rows;
    float *bias;  /* a row */
    float *query; /* left factor (CHUNK, steps) */
    float *keys, *values;
    Answers answers;
} Work;

static Sizes sizes_of_keys(const Sequences *task) {
    int64_t N = task->keys, d = task->dim;
    return (Sizes){N, round_up(N, LANES), d, round_up(d, LANES), steps_of(d, task->type), steps_of(N, task->type)};
}
static int64_t most_rows(const Sequences *task) { return task->keys > CHUNK ? task->keys : CHUNK; }
static int64_t scratch_size(const Sequences *task) {
    Sizes s = sizes_of_keys(task);
    return 2 * most_rows(task) + (2 * ROWS + 1 + s.channel_steps) * s.wide + CHUNK * s.channel_steps +
           (s.tokens + ROWS) * s.deep + 10 * 16;
}

static Work prepare(float *space, const Sequences *task) {
    Sizes s = sizes_of_keys(task);
    float *rest = space;
    Work work = {.sizes = s, .rows = (const void **)take(&rest, 2 * most_rows(task))};
    work.bias = take(&rest, s.wide);
    work.query = take(&rest, CHUNK * s.channel_steps);
    work.keys = take(&rest, s.channel_steps * s.wide);
    work.values = take(&rest, s.tokens * s.deep);
    work.answers = (Answers){.keys = work.keys, .values = work.values};
    work.answers.logits = take(&rest, ROWS * s.wide);
    work.answers.weights = take(&rest, ROWS * s.wide);
    work.answers.out = take(&rest, ROWS * s.deep);
    for (int64_t t = 0; t < s.wide; t++) work.bias[t] = t < s.tokens ? 0 : -INFINITY;
    return work;
}

/* Rows of one head: `count` of an image's `length`, from `first` on. */
static void find_sequence(Work *work, const Sequences *task, const void *sequence, int64_t length, int64_t image,
                          int64_t first, int64_t count, int64_t head) {
    int64_t width = task->heads * task->dim;
    for (int64_t t = 0; t < count; t++)
        work->rows[t] =
            (const char *)sequence + ((image * length + first + t) * width + head * task->dim) * bytes_of(task->type);
}

static void attend(Work *work, const Sequences *task, int64_t image, int64_t head, int64_t first, int64_t count) {
    const Sizes *s = &work->sizes;
    find_sequence(work, task, task->query, task->queries, image, first, count, head);
    fill_left(work->query, work->rows, count, s, task->type);
    for (int64_t row = 0; row < count; row += ROWS) {
        int64_t rows = least(ROWS, count - row), width = task->heads * task->dim;
        answer(&work->answers, work->query + row * s->channel_steps, work->bias, 0, rows, task->scale, s, task->type);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < s->dim; c += LANES)
                write(task->out, (image * task->queries + first + row + r) * width + head * s->dim + c,
                      *(vec *)(work->answers.out + r * s->deep + c) * (1.0f / work->answers.totals[r]), s->dim - c,
                      task->type);
    }
}

/* softmax(q k^T scale) v. Returns 0, or 1 without memory. */
int attention_sequences(const Sequences *task) {
    Arena *arena = take_arena(0, scratch_size(task));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        Work work = prepare(own_floats(arena), task);
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < task->images * task->heads; job++) {
            int64_t image = job / task->heads, head = job % task->heads;
            find_sequence(&work, task, task->key, task->keys, image, 0, task->keys, head);
            fill_transposed(work.keys, work.rows, &work.sizes, task->type);
            find_sequence(&work, task, task->value, task->keys, image, 0, task->keys, head);
            fill_right(work.values, work.rows, &work.sizes, task->type);
            for (int64_t first = 0; first < task->queries; first += CHUNK)
                attend(&work, task, image, head, first, least(CHUNK, task->queries - first));
        }
    }
    give_back(arena);
    return 0;
}
