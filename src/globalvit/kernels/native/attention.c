/* Attention inside the windows or stripes of a channels-last token grid, for CPUs, forward and backward; layer norm,
 * forward.
 *
 * Every window is read in place from what the Linear layers wrote and written in place to what the next one reads: no
 * windows are copied out, no table of position biases is spread, no query is repeated. All products run in one small
 * kernel on packed buffers that stay in the first and second level of cache; sums are float32.
 *
 * Names: B images, H W grid, h heads, d channels a head, N = rows * columns tokens of a window. `stride` is what lies
 * between two tokens of a tensor, counted in elements. Types: 0 is float32, 1 is bfloat16.
 *
 * Results do not depend on the number of threads: each task has a place of its own for the sums it contributes to.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__)
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

#if defined(__AVX512F__)
#define LANES 16
#define TILE 7 /* rows of a register tile: windows of 7 and 14 divide by it */
#elif defined(__AVX2__)
#define LANES 8
#define TILE 6
#else
#define LANES 4
#define TILE 7
#endif
#define MOST_ROWS 7
#define NEVER (-1e30f)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t bf16;

typedef struct {
    int64_t images, height, width;      /* the grid */
    int64_t rows, columns;              /* of a window */
    int64_t heads, dim;                 /* dim: channels a head */
    int64_t type;
    const void *query, *key, *value;
    int64_t stride;                     /* of keys and values, and of queries that lie beside them */
    int64_t is_global;                  /* queries are (B, h, N, d), contiguous, in `type` */
    const float *table;                 /* (h, 2 rows - 1, 2 columns - 1), key minus query ascending, or NULL */
    const float *taps;                  /* (9, h * d): 3x3 convolution of the values inside a window, or NULL */
    const float *offsets;               /* (h * d): its bias */
    float scale;
} Task;

/* What one thread needs to work on a window, cut from one allocation. */
typedef struct {
    int64_t tokens, padded_tokens, padded_dim;
    int uses_pairs;                     /* products of bfloat16 in the forward pass, where the CPU has them */
    float *query, *key, *value;         /* (N, padded d) */
    float *key_t, *value_t;             /* (d, padded N) */
    float *weights, *gradients;         /* (N, padded N) in the backward pass, (TILE, padded N) in the forward pass */
    bf16 *query16, *key16, *value16, *d_out16; /* (N, padded d), and a row of zeros */
    bf16 *weights16;                    /* (TILE, padded N); in the backward pass (N, padded N), of the gradients */
    /* Pairs of bfloat16 in the place of one float: of two channels (d / 2, padded N), of two tokens (N / 2, padded d)
     * and of two queries (N / 2, padded N). */
    float *key_channels, *value_channels;
    float *query_tokens, *key_tokens, *value_tokens, *d_out_tokens;
    float *weights_queries, *gradients_queries;
    float *out, *d_out, *d_query, *d_key, *d_value;
} Work;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline float from_bf16(bf16 x) {
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

static inline bf16 to_bf16(float x) {
    union { float value; uint32_t bits; } u = {.value = x};
    if ((u.bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0; /* not a number stays so */
    return (bf16)((u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16);
}

static void load(float *restrict to, const void *from, int64_t at, int64_t count, int64_t type) {
    if (type == 0) {
        memcpy(to, (const float *)from + at, count * sizeof(float));
    } else {
        const bf16 *restrict source = (const bf16 *)from + at;
        for (int64_t i = 0; i < count; i++) to[i] = from_bf16(source[i]);
    }
}

static void store(void *to, int64_t at, const float *restrict from, int64_t count, float factor, int64_t type) {
    if (type == 0) {
        float *restrict target = (float *)to + at;
        for (int64_t i = 0; i < count; i++) target[i] = from[i] * factor;
    } else {
        bf16 *restrict target = (bf16 *)to + at;
        int64_t i = 0;
#if HAS_PAIRS
        for (; i + LANES <= count; i += LANES)
            _mm256_storeu_si256((__m256i *)(target + i),
                                (__m256i)_mm512_cvtneps_pbh((__m512)(*(const vec *)(from + i) * factor)));
#endif
        for (; i < count; i++) target[i] = to_bf16(from[i] * factor);
    }
}

static inline vec splat(float x) { return (vec){} + x; }

#if defined(__AVX512F__)
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#else
static inline vec larger(vec a, vec b) { return (vec)(((ivec)a & (ivec)(a > b)) | ((ivec)b & ~(ivec)(a > b))); }
#endif

/* 2^x to 3e-7 relative, for x in [-126, 127]: the nearest power of two times a polynomial on [-1/2, 1/2]. */
static inline vec power_of_two(vec x) {
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    x = larger(x, splat(-126.0f));
    vec shifted = x + magic;
    vec f = x - (shifted - magic);
    vec p = f * 0.001327647152f + 0.009675541331f;
    p = p * f + 0.05550713275f;
    p = p * f + 0.2402211972f;
    p = p * f + 0.6931469671f;
    p = p * f + 1.000000072f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* One register tile: c (rows x vectors) = sum over k of a[row, k] * b[k, :], on top of what c holds if `onto`.
 * SPLAT reads one number of `a` into all lanes, READ a vector of `b`, MULTIPLY_ADD(sum, x, y) is sum + x * y. */
#define PRODUCT_TILE(NAME, VECTORS, SPLAT, READ, MULTIPLY_ADD)                                                         \
    static inline __attribute__((always_inline)) void NAME(int count, int64_t depth, const float *a, int64_t a_row,    \
                                                           int64_t a_depth, const float *b, int64_t b_depth, float *c, \
                                                           int64_t c_row, int onto) {                                  \
        vec sum[MOST_ROWS][VECTORS];                                                                                   \
        for (int r = 0; r < count; r++)                                                                                \
            for (int v = 0; v < VECTORS; v++) sum[r][v] = onto ? *(vec *)(c + r * c_row + v * LANES) : (vec){};        \
        for (int64_t k = 0; k < depth; k++)                                                                            \
            for (int r = 0; r < count; r++)                                                                            \
                for (int v = 0; v < VECTORS; v++)                                                                      \
                    sum[r][v] = MULTIPLY_ADD(sum[r][v], SPLAT(a + r * a_row + k * a_depth),                            \
                                             READ(b + k * b_depth + v * LANES));                                       \
        for (int r = 0; r < count; r++)                                                                                \
            for (int v = 0; v < VECTORS; v++) *(vec *)(c + r * c_row + v * LANES) = sum[r][v];                         \
    }

#define ROWS_CASE(N, ONE, TWO)                                                                                         \
    case N:                                                                                                            \
        if (vectors == 2) TWO(N, depth, a, a_row, a_depth, b, b_depth, c, c_row, onto);                                \
        else ONE(N, depth, a, a_row, a_depth, b, b_depth, c, c_row, onto);                                             \
        break;

/* c (rows, width) = a (rows, depth) b (depth, width), or that on top of c; `width` is a multiple of LANES, `a` strided
 * both ways. Constant counts of rows let the compiler keep a whole tile in registers. */
#define PRODUCT(NAME, ONE, TWO)                                                                                        \
    static void NAME##_tile(int rows, int vectors, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,      \
                            const float *b, int64_t b_depth, float *c, int64_t c_row, int onto) {                      \
        switch (rows) {                                                                                                \
            ROWS_CASE(1, ONE, TWO)                                                                                     \
            ROWS_CASE(2, ONE, TWO)                                                                                     \
            ROWS_CASE(3, ONE, TWO)                                                                                     \
            ROWS_CASE(4, ONE, TWO)                                                                                     \
            ROWS_CASE(5, ONE, TWO)                                                                                     \
            ROWS_CASE(6, ONE, TWO)                                                                                     \
            ROWS_CASE(7, ONE, TWO)                                                                                     \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME(int64_t rows, int64_t width, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,       \
                     const float *b, int64_t b_depth, float *c, int64_t c_row, int onto) {                             \
        for (int64_t r = 0; r < rows; r += TILE) {                                                                     \
            int count = rows - r < TILE ? (int)(rows - r) : TILE;                                                      \
            for (int64_t v = 0; v < width; v += 2 * LANES)                                                             \
                NAME##_tile(count, width - v >= 2 * LANES ? 2 : 1, depth, a + r * a_row, a_row, a_depth, b + v,        \
                            b_depth, c + r * c_row + v, c_row, onto);                                                  \
        }                                                                                                              \
    }

#define FLOAT_SPLAT(at) splat(*(at))
#define FLOAT_READ(at) (*(const vec *)(at))
#define FLOAT_MULTIPLY_ADD(sum, x, y) ((sum) + (x) * (y))
PRODUCT_TILE(tile_1, 1, FLOAT_SPLAT, FLOAT_READ, FLOAT_MULTIPLY_ADD)
PRODUCT_TILE(tile_2, 2, FLOAT_SPLAT, FLOAT_READ, FLOAT_MULTIPLY_ADD)
PRODUCT(product, tile_1, tile_2)

#if HAS_PAIRS
/* The same on pairs of bfloat16: a 32-bit element of `a` and of `b` holds two neighbours along the depth, the dot
 * product of which is added in float32. */
#define PAIR_SPLAT(at) ((__m512bh)_mm512_set1_epi32(*(const int32_t *)(at)))
#define PAIR_READ(at) ((__m512bh)_mm512_loadu_si512(at))
#define PAIR_MULTIPLY_ADD(sum, x, y) ((vec)_mm512_dpbf16_ps((__m512)(sum), (x), (y)))
PRODUCT_TILE(pair_tile_1, 1, PAIR_SPLAT, PAIR_READ, PAIR_MULTIPLY_ADD)
PRODUCT_TILE(pair_tile_2, 2, PAIR_SPLAT, PAIR_READ, PAIR_MULTIPLY_ADD)
PRODUCT(pair_product, pair_tile_1, pair_tile_2)

static void round_row(bf16 *to, const float *from, int64_t count) {
    for (int64_t t = 0; t < count; t += LANES)
        _mm256_storeu_si256((__m256i *)(to + t), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + t)));
}
#endif

static float *take(float **free_space, int64_t count) {
    float *taken = *free_space;
    *free_space += round_up(count, 16);
    return taken;
}

static void prepare_pairs(Work *work, float **rest, int64_t kept, int is_backward) {
    int64_t N = work->tokens, wide = work->padded_tokens, deep = work->padded_dim, half = (N + 1) / 2;
    work->query16 = (bf16 *)take(rest, half * deep);
    work->key16 = (bf16 *)take(rest, half * deep);
    work->value16 = (bf16 *)take(rest, half * deep);
    work->weights16 = (bf16 *)take(rest, kept * wide / 2);
    work->key_channels = take(rest, deep / 2 * wide);
    work->value_tokens = take(rest, half * deep);
    if (!is_backward) return;
    work->d_out16 = (bf16 *)take(rest, half * deep);
    work->value_channels = take(rest, deep / 2 * wide);
    work->query_tokens = take(rest, half * deep);
    work->key_tokens = take(rest, half * deep);
    work->d_out_tokens = take(rest, half * deep);
    work->weights_queries = take(rest, half * wide);
    work->gradients_queries = take(rest, half * wide);
}

/* Buffers of one thread; NULL when there is no memory for them. They start out as zeros: nothing ever writes to the
 * lanes that fill a row up, except to those of the weights. */
static void *prepare(Work *work, const Task *task, int is_backward) {
    int64_t N = task->rows * task->columns, d = task->dim;
    int64_t wide = round_up(N, LANES), deep = round_up(d, LANES), kept = is_backward ? N : TILE;
    int64_t size = 13 * (N + 2) * deep + 4 * deep * wide + 4 * (kept + 2) * wide + 1024;
    float *space = NULL, *rest;
    if (posix_memalign((void **)&space, 64, size * sizeof(float))) return NULL;
    memset(space, 0, size * sizeof(float));
    rest = space;
    *work = (Work){.tokens = N, .padded_tokens = wide, .padded_dim = deep};
    work->uses_pairs = HAS_PAIRS && task->type == 1;
    work->query = take(&rest, N * deep);
    work->key = take(&rest, N * deep);
    work->value = take(&rest, N * deep);
    work->key_t = take(&rest, d * wide);
    work->weights = take(&rest, kept * wide + LANES);
    work->out = take(&rest, N * deep);
    if (is_backward) {
        work->value_t = take(&rest, d * wide);
        work->gradients = take(&rest, kept * wide);
        work->d_out = take(&rest, N * deep);
        work->d_query = take(&rest, N * deep);
        work->d_key = take(&rest, N * deep);
        work->d_value = take(&rest, N * deep);
    }
    if (work->uses_pairs) prepare_pairs(work, &rest, kept, is_backward);
    return space;
}

/* Where a window's token lies on the grids of all images. */
static inline int64_t place(const Task *task, int64_t image, int64_t window, int64_t row) {
    int64_t across = task->width / task->columns;
    int64_t top = window / across * task->rows + row, left = window % across * task->columns;
    return (image * task->height + top) * task->width + left;
}

static void load_window(float *to, int64_t padded_dim, const Task *task, const void *from, int64_t stride, int64_t image,
                        int64_t window, int64_t head) {
    for (int64_t row = 0; row < task->rows; row++) {
        int64_t at = place(task, image, window, row);
        for (int64_t column = 0; column < task->columns; column++, to += padded_dim)
            load(to, from, (at + column) * stride + head * task->dim, task->dim, task->type);
    }
}

static void store_window(void *to, const float *from, int64_t padded_dim, float factor, const Task *task, int64_t stride,
                         int64_t image, int64_t window, int64_t head) {
    for (int64_t row = 0; row < task->rows; row++) {
        int64_t at = place(task, image, window, row);
        for (int64_t column = 0; column < task->columns; column++, from += padded_dim)
            store(to, (at + column) * stride + head * task->dim, from, task->dim, factor, task->type);
    }
}

static void transpose(float *restrict to, int64_t to_row, const float *restrict from, int64_t from_row, int64_t rows,
                      int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * to_row + r] = from[r * from_row + c];
}

#if HAS_PAIRS
static void copy_window(bf16 *to, int64_t padded_dim, const Task *task, const bf16 *from, int64_t stride, int64_t image,
                        int64_t window, int64_t head) {
    for (int64_t row = 0; row < task->rows; row++) {
        int64_t at = place(task, image, window, row);
        for (int64_t column = 0; column < task->columns; column++, to += padded_dim)
            memcpy(to, from + (at + column) * stride + head * task->dim, task->dim * sizeof(bf16));
    }
}

/* Rows of bfloat16 (N and one of zeros, padded d) become pairs of two tokens (N / 2, padded d). */
static void pair_tokens(float *to, const bf16 *rows, const Work *work) {
    int64_t deep = work->padded_dim;
    for (int64_t t = 0; t < work->tokens; t += 2) {
        const bf16 *restrict first = rows + t * deep, *restrict second = first + deep;
        bf16 *restrict pairs = (bf16 *)(to + t / 2 * deep);
        for (int64_t c = 0; c < deep; c++) {
            pairs[2 * c] = first[c];
            pairs[2 * c + 1] = second[c];
        }
    }
}

/* Rows of floats (N, padded N) become pairs of two queries (N / 2, padded N). */
static void pair_queries(float *to, const float *rows, const Work *work) {
    int64_t wide = work->padded_tokens;
    for (int64_t q = 0; q < work->tokens; q += 2)
        for (int64_t t = 0; t < wide; t += LANES) {
            const float *at = rows + q * wide + t;
            __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(at))), second = {};
            if (q + 1 < work->tokens)
                second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(at + wide)));
            _mm512_storeu_si512(to + q / 2 * wide + t, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
}

/* What the products on pairs read. */
static void load_pairs(Work *work, const Task *task, int64_t image, int64_t window, int64_t head) {
    int64_t deep = work->padded_dim, N = work->tokens, d = task->dim;
    const bf16 *queries = (const bf16 *)task->query + (image * task->heads + head) * N * d;
    if (task->is_global)
        for (int64_t t = 0; t < N; t++) memcpy(work->query16 + t * deep, queries + t * d, d * sizeof(bf16));
    else copy_window(work->query16, deep, task, task->query, task->stride, image, window, head);
    copy_window(work->key16, deep, task, task->key, task->stride, image, window, head);
    transpose(work->key_channels, work->padded_tokens, (float *)work->key16, deep / 2, N, (d + 1) / 2);
    copy_window(work->value16, deep, task, task->value, task->stride, image, window, head);
    pair_tokens(work->value_tokens, work->value16, work);
    if (task->taps) load_window(work->value, deep, task, task->value, task->stride, image, window, head);
}

static void load_pairs_back(Work *work, const Task *task, int64_t image, int64_t window, int64_t head, const void *d_out,
                            int64_t d_out_stride) {
    int64_t deep = work->padded_dim;
    load_pairs(work, task, image, window, head);
    copy_window(work->d_out16, deep, task, d_out, d_out_stride, image, window, head);
    transpose(work->value_channels, work->padded_tokens, (float *)work->value16, deep / 2, work->tokens,
              (task->dim + 1) / 2);
    pair_tokens(work->query_tokens, work->query16, work);
    pair_tokens(work->key_tokens, work->key16, work);
    pair_tokens(work->d_out_tokens, work->d_out16, work);
    if (task->taps) load_window(work->d_out, deep, task, d_out, d_out_stride, image, window, head);
}
#endif

static void load_floats(Work *work, const Task *task, int64_t image, int64_t window, int64_t head) {
    int64_t deep = work->padded_dim, query_at = (image * task->heads + head) * work->tokens * task->dim;
    if (task->is_global)
        for (int64_t t = 0; t < work->tokens; t++)
            load(work->query + t * deep, task->query, query_at + t * task->dim, task->dim, task->type);
    else load_window(work->query, deep, task, task->query, task->stride, image, window, head);
    load_window(work->key, deep, task, task->key, task->stride, image, window, head);
    load_window(work->value, deep, task, task->value, task->stride, image, window, head);
    transpose(work->key_t, work->padded_tokens, work->key, deep, work->tokens, task->dim);
}

/* Where the table's entries for a query and the keys of a window's row begin. */
static inline int64_t entry(const Task *task, int64_t head, int64_t query, int64_t key_row) {
    int64_t high = 2 * task->rows - 1, wide = 2 * task->columns - 1;
    int64_t down = key_row - query / task->columns + task->rows - 1;
    return (head * high + down) * wide + task->columns - 1 - query % task->columns;
}

/* What the logits of one query start from: its position biases, and out of reach where there is no key. Whole vectors
 * are copied: what they write too much the next row of keys overwrites; table and buffer have room for it at the end. */
static void begin_logits(float *logits, const Work *work, const Task *task, int64_t head, int64_t query) {
    if (task->table)
        for (int64_t row = 0; row < task->rows; row++) {
            const float *from = task->table + entry(task, head, query, row);
            for (int64_t c = 0; c < task->columns; c += LANES)
                *(vec *)(logits + row * task->columns + c) = *(const vec *)(from + c);
        }
    else memset(logits, 0, work->tokens * sizeof(float));
    for (int64_t t = work->tokens; t < work->padded_tokens; t++) logits[t] = NEVER;
}

/* One row of logits, still to be scaled, becomes e^(logit - largest); returns the sum. */
static float exponentials(float *row, int64_t wide, float scale) {
    vec top = splat(NEVER), sum = {};
    for (int64_t t = 0; t < wide; t += LANES) top = larger(top, *(vec *)(row + t));
    float largest = top[0], total = 0;
    for (int lane = 1; lane < LANES; lane++) largest = top[lane] > largest ? top[lane] : largest;
    float factor = scale * 1.44269504f, shift = largest * factor;
    for (int64_t t = 0; t < wide; t += LANES) {
        vec weights = power_of_two(*(vec *)(row + t) * factor - shift);
        *(vec *)(row + t) = weights;
        sum += weights;
    }
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    return total;
}

static void multiply(float *row, int64_t count, float factor) {
    for (int64_t t = 0; t < count; t += LANES) *(vec *)(row + t) *= factor;
}

/* Call `visit(to, from, tap)` for every pair of tokens of a window that the 3x3 convolution connects. */
#define FOR_EACH_TAP(task)                                                                                             \
    for (int64_t row = 0; row < (task)->rows; row++)                                                                   \
        for (int64_t column = 0; column < (task)->columns; column++)                                                   \
            for (int64_t tap = 0; tap < 9; tap++)                                                                      \
                if (row + tap / 3 >= 1 && row + tap / 3 <= (task)->rows && column + tap % 3 >= 1 &&                    \
                    column + tap % 3 <= (task)->columns)

static void convolve(Work *work, const Task *task, int64_t head) {
    int64_t deep = work->padded_dim, d = task->dim, all = task->heads * d;
    for (int64_t t = 0; t < work->tokens; t++)
        for (int64_t c = 0; c < d; c++) work->out[t * deep + c] += task->offsets[head * d + c];
    FOR_EACH_TAP(task) {
        float *restrict to = work->out + (row * task->columns + column) * deep;
        const float *restrict from = work->value + ((row + tap / 3 - 1) * task->columns + column + tap % 3 - 1) * deep;
        const float *restrict weight = task->taps + tap * all + head * d;
        for (int64_t c = 0; c < d; c++) to[c] += weight[c] * from[c];
    }
}

static void convolve_back(Work *work, const Task *task, int64_t head, float *d_taps, float *d_offsets) {
    int64_t deep = work->padded_dim, d = task->dim, all = task->heads * d;
    for (int64_t t = 0; t < work->tokens; t++)
        for (int64_t c = 0; c < d; c++) d_offsets[c] += work->d_out[t * deep + c];
    FOR_EACH_TAP(task) {
        int64_t source = ((row + tap / 3 - 1) * task->columns + column + tap % 3 - 1) * deep;
        const float *restrict gradient = work->d_out + (row * task->columns + column) * deep;
        const float *restrict from = work->value + source;
        const float *restrict weight = task->taps + tap * all + head * d;
        float *restrict to = work->d_value + source;
        for (int64_t c = 0; c < d; c++) {
            to[c] += weight[c] * gradient[c];
            d_taps[tap * d + c] += from[c] * gradient[c];
        }
    }
}

/* Weights, not yet divided by their sums, of up to TILE queries from `first` on; the sums go to `totals`. */
static void weigh(Work *work, const Task *task, int64_t head, int64_t first, int64_t count, float *weights,
                  float *totals) {
    int64_t wide = work->padded_tokens, deep = work->padded_dim;
    for (int64_t r = 0; r < count; r++) begin_logits(weights + r * wide, work, task, head, first + r);
#if HAS_PAIRS
    if (work->uses_pairs)
        pair_product(count, wide, (task->dim + 1) / 2, (float *)work->query16 + first * deep / 2, deep / 2, 1, work->key_channels, wide,
                     weights, wide, 1);
    else
#endif
        product(count, wide, task->dim, work->query + first * deep, deep, 1, work->key_t, wide, weights, wide, 1);
    for (int64_t r = 0; r < count; r++) totals[r] = exponentials(weights + r * wide, wide, task->scale);
}

static void attend(Work *work, const Task *task, int64_t head) {
    int64_t N = work->tokens, wide = work->padded_tokens, deep = work->padded_dim;
    for (int64_t first = 0; first < N; first += TILE) {
        int64_t count = N - first < TILE ? N - first : TILE;
        float totals[TILE], *out = work->out + first * deep;
        weigh(work, task, head, first, count, work->weights, totals);
#if HAS_PAIRS
        if (work->uses_pairs) {
            for (int64_t r = 0; r < count; r++) round_row(work->weights16 + r * wide, work->weights + r * wide, wide);
            pair_product(count, deep, (N + 1) / 2, (float *)work->weights16, wide / 2, 1, work->value_tokens, deep, out,
                         deep, 0);
        } else
#endif
            product(count, deep, N, work->weights, wide, 1, work->value, deep, out, deep, 0);
        for (int64_t r = 0; r < count; r++) multiply(out + r * deep, deep, 1.0f / totals[r]);
    }
    if (task->taps) convolve(work, task, head);
}

/* Every output of every window: (B, H, W, h * d) with `out_stride` between tokens. Returns 0, or 1 without memory. */
int attention_forward(const Task *task, void *out, int64_t out_stride) {
    int64_t windows = task->height / task->rows * (task->width / task->columns);
    int64_t jobs = task->images * windows * task->heads;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Work work;
        void *space = prepare(&work, task, 0);
        failed |= space == NULL;
#pragma omp for schedule(dynamic, 2)
        for (int64_t job = 0; job < jobs; job++) {
            int64_t head = job % task->heads, window = job / task->heads % windows, image = job / task->heads / windows;
            if (space == NULL) continue;
#if HAS_PAIRS
            if (work.uses_pairs) load_pairs(&work, task, image, window, head);
            else
#endif
                load_floats(&work, task, image, window, head);
            attend(&work, task, head);
            store_window(out, work.out, work.padded_dim, 1.0f, task, out_stride, image, window, head);
        }
        free(space);
    }
    return failed;
}

/* Gradient of the logits from weights and their gradient, in place; the table's share is added to `d_table`. */
static void differentiate_softmax(Work *work, const Task *task, float *d_table) {
    int64_t wide = work->padded_tokens;
    for (int64_t query = 0; query < work->tokens; query++) {
        float *weights = work->weights + query * wide, *gradient = work->gradients + query * wide, mean = 0;
        vec sum = {};
        for (int64_t t = 0; t < wide; t += LANES) sum += *(vec *)(weights + t) * *(vec *)(gradient + t);
        for (int lane = 0; lane < LANES; lane++) mean += sum[lane];
        for (int64_t t = 0; t < wide; t += LANES)
            *(vec *)(gradient + t) = *(vec *)(weights + t) * (*(vec *)(gradient + t) - mean);
        if (!task->table) continue;
        for (int64_t row = 0; row < task->rows; row++) {
            float *restrict to = d_table + entry(task, 0, query, row);
            const float *restrict from = gradient + row * task->columns;
            for (int64_t c = 0; c < task->columns; c++) to[c] += from[c];
        }
    }
}

static void attend_back(Work *work, const Task *task, int64_t head, float *d_table) {
    int64_t N = work->tokens, wide = work->padded_tokens, deep = work->padded_dim, d = task->dim;
    for (int64_t first = 0; first < N; first += TILE) {
        int64_t count = N - first < TILE ? N - first : TILE;
        float totals[TILE], *weights = work->weights + first * wide;
        weigh(work, task, head, first, count, weights, totals);
        for (int64_t r = 0; r < count; r++) multiply(weights + r * wide, wide, 1.0f / totals[r]);
    }
#if HAS_PAIRS
    if (work->uses_pairs) {
        int64_t half = (N + 1) / 2, pairs = (d + 1) / 2;
        pair_queries(work->weights_queries, work->weights, work);
        pair_product(N, wide, pairs, (float *)work->d_out16, deep / 2, 1, work->value_channels, wide, work->gradients,
                     wide, 0);
        differentiate_softmax(work, task, d_table);
        round_row(work->weights16, work->gradients, N * wide);
        pair_queries(work->gradients_queries, work->gradients, work);
        pair_product(N, deep, half, work->weights_queries, 1, wide, work->d_out_tokens, deep, work->d_value, deep, 0);
        pair_product(N, deep, half, (float *)work->weights16, wide / 2, 1, work->key_tokens, deep, work->d_query, deep,
                     0);
        pair_product(N, deep, half, work->gradients_queries, 1, wide, work->query_tokens, deep, work->d_key, deep, 0);
        return;
    }
#endif
    transpose(work->value_t, wide, work->value, deep, N, d);
    product(N, wide, d, work->d_out, deep, 1, work->value_t, wide, work->gradients, wide, 0);
    differentiate_softmax(work, task, d_table);
    product(N, deep, N, work->weights, 1, wide, work->d_out, deep, work->d_value, deep, 0);
    product(N, deep, N, work->gradients, wide, 1, work->key, deep, work->d_query, deep, 0);
    product(N, deep, N, work->gradients, 1, wide, work->query, deep, work->d_key, deep, 0);
}

/* Where the backward pass writes. The sums over windows come in parts, one a job, which the caller adds up in order:
 * (images, heads, parts, ...). Query gradients have the layout of the queries; global ones are such sums too. */
typedef struct {
    void *query, *key, *value;
    int64_t stride;
    float *global_query; /* (B, h, parts, N, d) or NULL */
    float *table;        /* (B, h, parts, 2 rows - 1, 2 columns - 1) or NULL */
    float *taps;         /* (B, h, parts, 9, d) or NULL */
    float *offsets;      /* (B, h, parts, d) or NULL */
    int64_t parts, windows_a_part;
} Gradients;

static void sum_query(float *restrict to, const Work *work, const Task *task) {
    for (int64_t t = 0; t < work->tokens; t++)
        for (int64_t c = 0; c < task->dim; c++)
            to[t * task->dim + c] += work->d_query[t * work->padded_dim + c] * task->scale;
}

static void window_back(Work *work, const Task *task, const Gradients *to, int64_t job, const void *d_out,
                        int64_t d_out_stride, int64_t window) {
    int64_t head = job / to->parts % task->heads, image = job / to->parts / task->heads, deep = work->padded_dim;
    int64_t entries = (2 * task->rows - 1) * (2 * task->columns - 1), d = task->dim;
#if HAS_PAIRS
    if (work->uses_pairs) load_pairs_back(work, task, image, window, head, d_out, d_out_stride);
    else
#endif
    {
        load_floats(work, task, image, window, head);
        load_window(work->d_out, deep, task, d_out, d_out_stride, image, window, head);
    }
    attend_back(work, task, head, to->table ? to->table + job * entries : NULL);
    if (task->taps) convolve_back(work, task, head, to->taps + job * 9 * d, to->offsets + job * d);
    if (task->is_global) sum_query(to->global_query + job * work->tokens * d, work, task);
    else store_window(to->query, work->d_query, deep, task->scale, task, to->stride, image, window, head);
    store_window(to->key, work->d_key, deep, task->scale, task, to->stride, image, window, head);
    store_window(to->value, work->d_value, deep, 1.0f, task, to->stride, image, window, head);
}

/* Gradients of everything `attention_forward` reads. Returns 0, or 1 without memory. */
int attention_backward(const Task *task, const void *d_out, int64_t d_out_stride, const Gradients *to) {
    int64_t windows = task->height / task->rows * (task->width / task->columns);
    int64_t jobs = task->images * task->heads * to->parts;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Work work;
        void *space = prepare(&work, task, 1);
        failed |= space == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < jobs; job++) {
            int64_t first = job % to->parts * to->windows_a_part;
            for (int64_t window = first; space && window < first + to->windows_a_part && window < windows; window++)
                window_back(&work, task, to, job, d_out, d_out_stride, window);
        }
        free(space);
    }
    return failed;
}

/* Layer norm of (rows, dim) with float32 weights: PyTorch's own takes three times as long on bfloat16. Returns 0, or 1
 * without memory. */
int layer_norm(int64_t rows, int64_t dim, const void *x, const float *weight, const float *bias, float eps, void *out,
               int64_t type) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *row = malloc(dim * sizeof(float));
        failed |= row == NULL;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float sum = 0, squares = 0;
            if (row == NULL) continue;
            load(row, x, r * dim, dim, type);
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < dim; c++) sum += row[c];
            float mean = sum / dim;
#pragma omp simd reduction(+ : squares)
            for (int64_t c = 0; c < dim; c++) squares += (row[c] - mean) * (row[c] - mean);
            float factor = 1.0f / sqrtf(squares / dim + eps);
            for (int64_t c = 0; c < dim; c++) row[c] = (row[c] - mean) * factor * weight[c] + bias[c];
            store(out, r * dim, row, dim, 1.0f, type);
        }
        free(row);
    }
    return failed;
}
