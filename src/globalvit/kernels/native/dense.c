/* Linear layers on rows of tokens, for CPUs: layer norm before them, GELU or a residual sum after them, two of them in
 * one pass. What lies between the steps stays in the caches.
 *
 * Weights are packed once, in panels as wide as a register tile. The depth of a product (the inputs) is counted in
 * floats, or in pairs of bfloat16 (vectors.h). Sums are float32 and run along the whole depth in one order, so results
 * depend neither on the number of threads nor on the number of rows.
 */

#include <omp.h>

#include "products.h"

#define BLOCK 48 /* rows that one thread takes through all layers */
#define TILE_WIDTH (VECTORS * LANES)

typedef struct {
    int64_t inputs, outputs;
    const float *weight; /* packed */
    const float *bias;   /* (outputs) and up to LANES zeros more, or NULL */
    int64_t has_gelu;
} Layer;

typedef struct {
    int64_t dim;
    const float *factors, *offsets; /* (dim) or NULL */
    float eps;
} Norm;

typedef struct {
    int64_t rows, type;       /* of x, residual and out, all of them contiguous */
    const void *x;            /* (rows, inputs of the first layer) */
    Norm norm;                /* x is normed first, unless it has no dim */
    const float *gates;       /* (rows / gate_rows, inputs): x is multiplied by them, or NULL */
    int64_t gate_rows;
    const void *residual;     /* (rows, outputs of the last layer), added at the end, or NULL */
    void *out;
    Layer first, second;      /* the second has no outputs where there is only one */
} Chain;

int has_pairs(void) { return HAS_PAIRS; }

/* Panels are 1 to VECTORS vectors wide, as equal as can be. */
INLINE int64_t panels_of(int64_t outputs) { return (outputs + TILE_WIDTH - 1) / TILE_WIDTH; }
INLINE int64_t first_vector(int64_t panel, int64_t outputs) {
    return part_begin(panel, panels_of(outputs), (outputs + LANES - 1) / LANES);
}

int64_t dense_packed_size(int64_t inputs, int64_t outputs, int64_t type) {
    return steps_of(inputs, type) * round_up(outputs, LANES);
}

/* One step of one output: a float or a pair. */
static float packed_step(const void *weight, int64_t at, int64_t input_stride, int has_next, int64_t type) {
    union { bf16 pair[2]; float value; } u;
    if (type == 0) return ((const float *)weight)[at];
    u.pair[0] = ((const bf16 *)weight)[at];
    u.pair[1] = has_next ? ((const bf16 *)weight)[at + input_stride] : 0;
    return u.value;
}

/* Weights (outputs, inputs), by strides in numbers, to panels of (steps, vectors, LANES) side by side. */
void dense_pack(int64_t inputs, int64_t outputs, const void *weight, int64_t output_stride, int64_t input_stride,
                float *packed, int64_t type) {
    int64_t depth = steps_of(inputs, type), pair = type == 0 ? 1 : 2;
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels_of(outputs); panel++) {
        int64_t first = first_vector(panel, outputs) * LANES, width = first_vector(panel + 1, outputs) * LANES - first;
        float *to = packed + first * depth;
        for (int64_t step = 0; step < depth; step++)
            for (int64_t c = 0; c < width; c++) {
                int64_t input = step * pair, at = (first + c) * output_stride + input * input_stride;
                int is_there = first + c < outputs;
                to[step * width + c] = is_there ? packed_step(weight, at, input_stride, input + 1 < inputs, type) : 0;
            }
    }
}

/* What happens to a tile's sums on their way out. */
static void finish(const Layer *layer, const float *sums, int64_t rows, int64_t column, int64_t width,
                   const void *residual, void *out, int64_t at, int64_t stride, int64_t type) {
    for (int64_t r = 0; r < rows; r++, at += stride, sums += TILE_WIDTH)
        for (int64_t c = 0; c < width; c += LANES) {
            vec x = *(const vec *)(sums + c);
            int64_t count = layer->outputs - column - c;
            if (layer->bias) x += *(const vec *)(layer->bias + column + c);
            if (layer->has_gelu) x = gelu(x);
            if (residual) x += read(residual, at + column + c, count, type);
            write(out, at + column + c, x, count, type);
        }
}

/* One layer on the rows of a block: `a` (rows, steps of the depth), out and residual from `at` on, `stride` between rows. */
static void apply(const Layer *layer, const float *a, int64_t a_row, int64_t rows, int64_t first_panel,
                  int64_t last_panel, const void *residual, void *out, int64_t at, int64_t stride, int64_t type) {
    int64_t depth = steps_of(layer->inputs, type), tiles = (rows + ROWS - 1) / ROWS;
    float sums[ROWS * TILE_WIDTH] __attribute__((aligned(64)));
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        int64_t vector = first_vector(panel, layer->outputs), vectors = first_vector(panel + 1, layer->outputs) - vector;
        Product p = {.depth = depth, .a_row = a_row, .a_step = 1, .b_step = vectors * LANES, .c = sums, .c_row = TILE_WIDTH};
        p.b = layer->weight + vector * LANES * depth;
        p.begin = zeros;
        for (int64_t t = 0; t < tiles; t++) {
            int64_t row = part_begin(t, tiles, rows), count = part_begin(t + 1, tiles, rows) - row;
            p.a = a + row * a_row;
            multiply_tile(count, vectors, &p, type);
            finish(layer, sums, count, vector * LANES, vectors * LANES, residual, out, at + row * stride, stride, type);
        }
    }
}

/* A row without its mean, of variance 1, times factors plus offsets unless they are NULL. `numbers` holds a row. */
static void norm_row(const void *x, int64_t at, const Norm *norm, float *numbers, void *out, int64_t out_at,
                     int64_t type) {
    int64_t dim = norm->dim;
    vec sum = {}, squares = {};
    for (int64_t c = 0; c < dim; c += LANES) sum += *(vec *)(numbers + c) = read(x, at + c, dim - c, type);
    float mean = total(sum) / dim;
    for (int64_t c = 0; c < dim; c += LANES) {
        vec centred = *(vec *)(numbers + c) - mean;
        if (dim - c < LANES) centred = read(&centred, 0, dim - c, 0);
        *(vec *)(numbers + c) = centred;
        squares += centred * centred;
    }
    float factor = 1.0f / sqrtf(total(squares) / dim + norm->eps);
    for (int64_t c = 0; c < dim; c += LANES) {
        vec normed = *(vec *)(numbers + c) * factor;
        if (norm->factors) normed = normed * read(norm->factors, c, dim - c, 0) + read(norm->offsets, c, dim - c, 0);
        write(out, out_at + c, normed, dim - c, type);
    }
}

static void gate_row(const Chain *chain, int64_t row, void *out) {
    int64_t dim = chain->first.inputs, gates = row / chain->gate_rows * dim;
    for (int64_t c = 0; c < dim; c += LANES)
        write(out, c, read(chain->x, row * dim + c, dim - c, chain->type) * read(chain->gates, gates + c, dim - c, 0),
              dim - c, chain->type);
}

/* Where one thread works. */
typedef struct {
    float *numbers; /* a row */
    float *a;       /* (BLOCK, steps of the first layer) */
    float *hidden;  /* (BLOCK, steps of the second) */
} Bench;

static void *prepare(Bench *bench, const Chain *chain) {
    int64_t first = round_up(steps_of(chain->first.inputs, chain->type) + 1, 16);
    int64_t second = round_up(steps_of(chain->second.inputs, chain->type) + 1, 16);
    int64_t row = round_up(chain->first.inputs, LANES), size = row + BLOCK * (first + second) + LANES;
    float *space = workspace(size);
    if (space == NULL) return NULL;
    /* Pairs without a second number have a zero there. */
    if (chain->type == 1 && (chain->first.inputs | chain->second.inputs) % 2) memset(space, 0, size * sizeof(float));
    *bench = (Bench){.numbers = space, .a = space + row, .hidden = space + row + BLOCK * first};
    return space;
}

/* The rows of a block as the first product reads them: as they are where they can be. */
static const float *first_operand(const Chain *chain, const Bench *bench, int64_t row, int64_t rows) {
    int64_t dim = chain->first.inputs, depth = steps_of(dim, chain->type), size = bytes_of(chain->type);
    int is_whole = chain->type == 0 || dim % 2 == 0;
    if (chain->norm.dim == 0 && chain->gates == NULL && is_whole) return (const float *)((const char *)chain->x + row * dim * size);
    for (int64_t r = 0; r < rows; r++) {
        void *to = bench->a + r * depth;
        if (chain->norm.dim) norm_row(chain->x, (row + r) * dim, &chain->norm, bench->numbers, to, 0, chain->type);
        else if (chain->gates) gate_row(chain, row + r, to);
        else memcpy(to, (const char *)chain->x + (row + r) * dim * size, dim * size);
    }
    return bench->a;
}

static void run_block(const Chain *chain, const Bench *bench, int64_t row, int64_t rows, int64_t first_panel,
                      int64_t last_panel) {
    const Layer *first = &chain->first, *second = &chain->second;
    int64_t type = chain->type, depth = steps_of(first->inputs, type), hidden = steps_of(second->inputs, type);
    const float *a = first_operand(chain, bench, row, rows);
    if (second->outputs == 0) {
        int64_t width = first->outputs;
        apply(first, a, depth, rows, first_panel, last_panel, chain->residual, chain->out, row * width, width, type);
        return;
    }
    int64_t width = second->outputs, pair = type == 0 ? 1 : 2;
    apply(first, a, depth, rows, 0, panels_of(first->outputs), NULL, bench->hidden, 0, hidden * pair, type);
    apply(second, bench->hidden, hidden, rows, 0, panels_of(width), chain->residual, chain->out, row * width, width, type);
}

/* Compute `out` for every row. Returns 0, or 1 without memory. */
int dense_chain(const Chain *chain) {
    int64_t blocks = (chain->rows + BLOCK - 1) / BLOCK, panels = panels_of(chain->first.outputs), groups = 1;
    int64_t enough = 4 * omp_get_max_threads();
    int failed = 0;
    /* Few rows: smaller blocks, and a single layer is cut by its outputs, too. */
    if (blocks < enough) blocks = least(round_up(blocks, omp_get_max_threads()), (chain->rows + ROWS - 1) / ROWS);
    if (blocks < enough && chain->second.outputs == 0) groups = least((enough + blocks - 1) / blocks, (panels + 1) / 2);
#pragma omp parallel reduction(| : failed)
    {
        Bench bench = {};
        void *space = prepare(&bench, chain);
        failed |= space == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < blocks * groups; job++) {
            int64_t block = job / groups, group = job % groups, row = part_begin(block, blocks, chain->rows);
            if (space)
                run_block(chain, &bench, row, part_begin(block + 1, blocks, chain->rows) - row,
                          part_begin(group, groups, panels), part_begin(group + 1, groups, panels));
        }
    }
    return failed;
}

/* Norm rows by themselves, all contiguous. Returns 0, or 1 without memory. */
int layer_norm(int64_t rows, const Norm *norm, const void *x, void *out, int64_t type) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *numbers = workspace(round_up(norm->dim, LANES));
        failed |= numbers == NULL;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            if (numbers) norm_row(x, r * norm->dim, norm, numbers, out, r * norm->dim, type);
    }
    return failed;
}
