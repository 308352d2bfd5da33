/* Forward pass of Linear layers on rows of tokens. Layer norm before a layer, GELU and residual after it, and a second
 * layer run in the same pass, so that intermediate results stay in the caches.
 */

#include <omp.h>

#include "arena.h"
#include "linear.h"

typedef struct {
    int64_t rows, type; /* of the products */
    const void *x;      /* (rows, inputs of the first layer) */
    int64_t x_type;
    Norm norm;          /* of x, unless its dim is 0 */
    const float *gates; /* (rows / gate_rows, inputs): x is multiplied by them, or NULL */
    int64_t gate_rows;
    void *kept;           /* (rows, outputs of the first layer), receives the inputs of GELU, or NULL */
    const void *residual; /* (rows, outputs of the last layer), added at the end, or NULL */
    void *out;            /* in `type`, and so are `kept` and `residual` */
    Layer first, second;  /* the second has no outputs if there is only one */
} Chain;

const int64_t size_of_chain = sizeof(Chain);

int has_pairs(void) { return HAS_PAIRS; }

int64_t linear_packed_size(int64_t inputs, int64_t outputs, int64_t type) {
    return steps_of(inputs, type) * round_up(outputs, LANES);
}

/* Pack weights (outputs, inputs) of `weight_type` in panels (steps, vectors, LANES), one after another. */
void linear_pack(int64_t inputs, int64_t outputs, const void *weight, int64_t weight_type, float *packed,
                 int64_t type) {
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

/* As linear_pack, for transposed weights (inputs, outputs), whose rows become steps as they are. */
void linear_pack_transposed(int64_t inputs, int64_t outputs, const void *weight, int64_t weight_type, float *packed,
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

/* Scratch memory of one thread. */
typedef struct {
    float *numbers; /* a row */
    float *a;       /* (BLOCK, steps of the first layer) */
    float *hidden;  /* (BLOCK, steps of the second) */
} Scratch;

static int64_t steps_of_rows(const Layer *layer, int64_t type) {
    return round_up(steps_of(layer->inputs, type) + 1, 16);
}
static int64_t scratch_size(const Chain *chain) {
    int64_t row = round_up(chain->first.inputs, 16);
    return row + BLOCK * (steps_of_rows(&chain->first, chain->type) + steps_of_rows(&chain->second, chain->type)) +
           LANES;
}

static Scratch prepare(float *space, const Chain *chain) {
    int64_t row = round_up(chain->first.inputs, 16);
    /* The last pair of an odd row has no second number: it must be 0, not NaN. */
    if (chain->type == 1 && (chain->first.inputs | chain->second.inputs) % 2)
        memset(space, 0, scratch_size(chain) * sizeof(float));
    return (Scratch){
        .numbers = space, .a = space + row, .hidden = space + row + BLOCK * steps_of_rows(&chain->first, chain->type)};
}

/* The rows of a block as the left factor of the first product, normed or gated. */
static const float *first_operand(const Chain *chain, const Scratch *scratch, int64_t row, int64_t rows) {
    int64_t dim = chain->first.inputs, depth = steps_of(dim, chain->type), pair = numbers_a_step(chain->type);
    Rows x = {(void *)chain->x, dim, chain->x_type};
    if (chain->norm.dim == 0 && chain->gates == NULL) return left_factor(&x, row, rows, dim, scratch->a, chain->type);
    for (int64_t r = 0; r < rows; r++) {
        float *to = scratch->a + r * depth;
        const char *from = (const char *)chain->x + (row + r) * dim * bytes_of(chain->x_type);
        if (chain->norm.dim)
            norm_row(from, 0, chain->x_type, &chain->norm, scratch->numbers, to, 0, pair == 2);
        else
            gate_row(chain, row + r, to);
    }
    return scratch->a;
}

static void run_block(const Chain *chain, const Scratch *scratch, int64_t row, int64_t rows, int64_t first_panel,
                      int64_t last_panel) {
    int64_t type = chain->type, depth = steps_of(chain->first.inputs, type),
            hidden = steps_of(chain->second.inputs, type);
    int64_t pair = numbers_a_step(type), inner = chain->first.outputs, outer = chain->second.outputs;
    const float *a = first_operand(chain, scratch, row, rows);
    Finish end = {.layer = outer ? &chain->second : &chain->first,
                  .residual = {(void *)chain->residual, outer ? outer : inner, type},
                  .kept = {chain->kept, inner, type},
                  .out = {chain->out, outer ? outer : inner, type}};
    /* Hidden rows are scratch of this block: their row numbers begin at 0. */
    Finish middle = {
        .layer = &chain->first, .kept = {chain->kept, inner, type}, .out = {scratch->hidden, hidden * pair, pair == 2}};
    if (outer == 0) {
        apply(&end, a, depth, row, rows, first_panel, last_panel, type);
        return;
    }
    if (chain->kept) middle.kept.at = (char *)chain->kept + row * inner * bytes_of(type);
    apply(&middle, a, depth, 0, rows, 0, panels_of(inner), type);
    apply(&end, scratch->hidden, hidden, row, rows, 0, panels_of(outer), type);
}

/* Compute `out` for every row. Returns 0, or 1 without memory. */
int linear_chain(const Chain *chain) {
    int64_t threads = omp_get_max_threads(), blocks = blocks_of(chain->rows, threads), groups = 1;
    int64_t panels = panels_of(chain->first.outputs);
    Arena *arena = take_arena(0, scratch_size(chain));
    if (arena == NULL) return 1;
    /* A single layer on few rows is divided by its outputs, too. */
    if (blocks < 4 * threads && chain->second.outputs == 0)
        groups = least((4 * threads + blocks - 1) / blocks, (panels + 1) / 2);
#pragma omp parallel
    {
        Scratch scratch = prepare(own_floats(arena), chain);
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < blocks * groups; job++) {
            int64_t block = job / groups, group = job % groups, row = part_begin(block, blocks, chain->rows);
            run_block(chain, &scratch, row, part_begin(block + 1, blocks, chain->rows) - row,
                      part_begin(group, groups, panels), part_begin(group + 1, groups, panels));
        }
    }
    give_back(arena);
    return 0;
}

/* Layer norm of rows; all are contiguous. Returns 0, or 1 without memory. */
int layer_norm(int64_t rows, const Norm *norm, const void *x, void *out, int64_t type) {
    Arena *arena = take_arena(0, round_up(norm->dim, 16));
    if (arena == NULL) return 1;
#pragma omp parallel
    {
        float *numbers = own_floats(arena);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) norm_row(x, r * norm->dim, type, norm, numbers, out, r * norm->dim, type);
    }
    give_back(arena);
    return 0;
}
