/* Attention of whole sequences to one another, for CPUs, forward: GPViT's groups gather from all tokens of an image,
 * and tokens take from the groups.
 */

#include <omp.h>

#include "attention.h"

#define CHUNK 96 /* queries that are read at once */

typedef struct {
    int64_t images, queries, keys, heads, dim, type;
    const void *query, *key, *value; /* (B, queries, h * d) and twice (B, keys, h * d), contiguous, and so is out */
    void *out;
    float scale;
} Sequences;

/* Where one thread works. */
typedef struct {
    Sizes sizes;
    const void **rows;
    float *bias;  /* a row */
    float *query; /* left factor (CHUNK, steps) */
    float *keys, *values;
    Answers answers;
} Work;

static void *prepare(Work *work, const Sequences *task) {
    int64_t N = task->keys, type = task->type, most = N > CHUNK ? N : CHUNK;
    Sizes s = {
        N, round_up(N, LANES), task->dim, round_up(task->dim, LANES), steps_of(task->dim, type), steps_of(N, type)};
    int64_t floats =
        2 * most + (2 * ROWS + 1 + s.channel_steps) * s.wide + CHUNK * s.channel_steps + (N + ROWS) * s.deep;
    float *space = workspace(floats + 10 * 16), *rest = space;
    if (space == NULL) return NULL;
    *work = (Work){.sizes = s, .rows = (const void **)take(&rest, 2 * most)};
    work->bias = take(&rest, s.wide);
    work->query = take(&rest, CHUNK * s.channel_steps);
    work->keys = take(&rest, s.channel_steps * s.wide);
    work->values = take(&rest, N * s.deep);
    work->answers = (Answers){.keys = work->keys, .values = work->values};
    work->answers.logits = take(&rest, ROWS * s.wide);
    work->answers.weights = take(&rest, ROWS * s.wide);
    work->answers.out = take(&rest, ROWS * s.deep);
    for (int64_t t = 0; t < s.wide; t++) work->bias[t] = t < N ? 0 : NEVER;
    return space;
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
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Work work = {};
        void *space = prepare(&work, task);
        failed |= space == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < task->images * task->heads; job++) {
            int64_t image = job / task->heads, head = job % task->heads;
            if (space == NULL) continue;
            find_sequence(&work, task, task->key, task->keys, image, 0, task->keys, head);
            fill_turned(work.keys, work.rows, &work.sizes, task->type);
            find_sequence(&work, task, task->value, task->keys, image, 0, task->keys, head);
            fill_right(work.values, work.rows, &work.sizes, task->type);
            for (int64_t first = 0; first < task->queries; first += CHUNK)
                attend(&work, task, image, head, first, least(CHUNK, task->queries - first));
        }
    }
    return failed;
}
