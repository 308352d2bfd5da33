/* Linear layers on rows of tokens, for CPUs: the forward pass. Layer norm before them, GELU or a residual sum after
 * them, two of them in one pass: what lies between the steps stays in the caches.
 */

#include <omp.h>

#include "dense.h"

typedef struct {
    int64_t rows, type; /* of the products */
    const void *x;      /* (rows, inputs of the first layer) */
    int64_t x_type;
    Norm norm;          /* x is normed first, unless it has no dim */
    const float *gates; /* (rows / gate_rows, inputs): x is multiplied by them, or NULL */
    int64_t gate_rows;
    void *kept;           /* (rows, outputs of the first layer), takes what GELU comes after, or NULL */
    const void *residual; /* (rows, outputs of the last layer), added at the end, or NULL */
    void *out;            /* in `type`, and so are `kept` and `residual` */
    Layer first, second;  /* the second has no outputs where there is only one */
} Chain;

int has_pairs(void) { return HAS_PAIRS; }

int64_t dense_packed_size(int64_t inputs, int64_t outputs, int64_t type) {
    return steps_of(inputs, type) * round_up(outputs, LANES);
}

/* Weights (outputs, inputs) of `weight_type`, row by row, to panels of (steps, vectors, LANES) side by side. */
void dense_pack(int64_t inputs, int64_t outputs, const void *weight, int64_t weight_type, float *packed, int64_t type) {
    int64_t depth = steps_of(inputs, type), size = bytes_of(weight_type), pair = numbers_a_step(type);
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels_of(outputs); panel++) {
        int64_t first = first_vector(panel, outputs) * LANES, width = first_vector(panel + 1, outputs) * LANES - first;
        float *to = packed + first * depth;
        for (int64_t c = 0; c < width; c += LANES)
            for (int64_t step = 0; step < depth; step += LANES) {
                vec square[LANES];
                for (int r = 0; r < LANES; r++) {
                    const char *row = (const char *)weight + (first + c + r) * inputs * size;
                    square[r] = first + c + r < outputs ? read_steps(row, step, inputs - step * pair, weight_type, type)
                                                        : (vec){};
                }
                transpose(square);
                for (int i = 0; i < LANES && step + i < depth; i++) *(vec *)(to + (step + i) * width + c) = square[i];
            }
    }
}

/* The same for weights that lie turned, (inputs, outputs): rows of them become steps as they are. */
void dense_pack_turned(int64_t inputs, int64_t outputs, const void *weight, int64_t weight_type, float *packed,
                       int64_t type) {
    int64_t depth = steps_of(inputs, type), pair = numbers_a_step(type);
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels_of(outputs); panel++) {
        int64_t first = first_vector(panel, outputs) * LANES, width = first_vector(panel + 1, outputs) * LANES - first;
        float *to = packed + first * depth;
        for (int64_t step = 0; step < depth; step++)
            for (int64_t c = 0; c < width; c += LANES) {
                int64_t input = step * pair, at = input * outputs + first + c, count = outputs - first - c;
                vec x = read(weight, at, count, weight_type), next = {};
                if (pair == 2 && input + 1 < inputs) next = read(weight, at + outputs, count, weight_type);
                *(vec *)(to + step * width + c) = pair == 2 ? pair_up(x, next) : x;
            }
    }
}

static void gate_row(const Chain *chain, int64_t row, void *out) {
    int64_t dim = chain->first.inputs, gates = row / chain->gate_rows * dim;
    for (int64_t c = 0; c < dim; c += LANES)
        write(out, c, read(chain->x, row * dim + c, dim - c, chain->x_type) * read(chain->gates, gates + c, dim - c, 0),
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
    int64_t dim = chain->first.inputs, depth = steps_of(dim, chain->type), pair = numbers_a_step(chain->type);
    Rows x = {(void *)chain->x, dim, chain->x_type};
    if (chain->norm.dim == 0 && chain->gates == NULL) return left_factor(&x, row, rows, dim, bench->a, chain->type);
    for (int64_t r = 0; r < rows; r++) {
        float *to = bench->a + r * depth;
        const char *from = (const char *)chain->x + (row + r) * dim * bytes_of(chain->x_type);
        if (chain->norm.dim)
            norm_row(from, 0, chain->x_type, &chain->norm, bench->numbers, to, 0, pair == 2);
        else
            gate_row(chain, row + r, to);
    }
    return bench->a;
}

static void run_block(const Chain *chain, const Bench *bench, int64_t row, int64_t rows, int64_t first_panel,
                      int64_t last_panel) {
    int64_t type = chain->type, depth = steps_of(chain->first.inputs, type),
            hidden = steps_of(chain->second.inputs, type);
    int64_t pair = numbers_a_step(type), inner = chain->first.outputs, outer = chain->second.outputs;
    const float *a = first_operand(chain, bench, row, rows);
    Finish end = {.layer = outer ? &chain->second : &chain->first,
                  .residual = {(void *)chain->residual, outer ? outer : inner, type},
                  .kept = {chain->kept, inner, type},
                  .out = {chain->out, outer ? outer : inner, type}};
    /* Hidden rows are written as though the block were the first. */
    Finish middle = {
        .layer = &chain->first, .kept = {chain->kept, inner, type}, .out = {bench->hidden, hidden * pair, pair == 2}};
    if (outer == 0) {
        apply(&end, a, depth, row, rows, first_panel, last_panel, type);
        return;
    }
    if (chain->kept) middle.kept.at = (char *)chain->kept + row * inner * bytes_of(type);
    apply(&middle, a, depth, 0, rows, 0, panels_of(inner), type);
    apply(&end, bench->hidden, hidden, row, rows, 0, panels_of(outer), type);
}

/* Compute `out` for every row. Returns 0, or 1 without memory. */
int dense_chain(const Chain *chain) {
    int64_t threads = omp_get_max_threads(), blocks = blocks_of(chain->rows, threads), groups = 1;
    int64_t panels = panels_of(chain->first.outputs);
    int failed = 0;
    /* A single layer on few rows is cut by its outputs, too. */
    if (blocks < 4 * threads && chain->second.outputs == 0)
        groups = least((4 * threads + blocks - 1) / blocks, (panels + 1) / 2);
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
            if (numbers) norm_row(x, r * norm->dim, type, norm, numbers, out, r * norm->dim, type);
    }
    return failed;
}
