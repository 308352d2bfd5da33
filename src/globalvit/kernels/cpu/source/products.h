/* Matrix products in register tiles: every sum of a tile stays in a register along the whole depth.
 *
 * A step along the depth is one float, or in its place a pair of bfloat16 (vectors.h); both take four bytes.
 */

#ifndef GLOBALVIT_PRODUCTS_H
#define GLOBALVIT_PRODUCTS_H

#include "vectors.h"

typedef struct {
    int64_t depth;  /* in steps */
    const float *a; /* (rows, depth), any strides */
    int64_t a_row, a_step;
    const float *b; /* (depth, vectors * LANES) */
    int64_t b_step;
    const float *begin; /* initial sums, (rows, vectors * LANES); one row for all if begin_row is 0 */
    int64_t begin_row;
    void *c; /* (rows, vectors * LANES) */
    int64_t c_row, c_type;
    const void *addend; /* added at the end, in c's type, or NULL */
    int64_t addend_row;
} Product;

static const float zeros[VECTORS * LANES];

INLINE vec repeat(const float *a, const int type) {
#if HAS_PAIRS
    if (type == 1) return (vec)_mm512_set1_epi32(*(const int32_t *)a);
#endif
    (void)type;
    return splat(*a);
}

INLINE vec add_product(vec sum, vec a, vec b, const int type) {
#if HAS_PAIRS
    if (type == 1) {
#if defined(GLOBALVIT_EMULATED)
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        /* Not the intrinsic: GCC 12 copies its sums around in loops and loads `b` again for every row. */
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
        return sum;
#endif
    }
#endif
    (void)type;
    return multiply_then_add(a, b, sum);
}

/* The sums have names because compilers sometimes keep arrays of them in memory. */
#define FOR_ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define FOR_SUMS_OF(DO, R) DO(R, 0) DO(R, 1) DO(R, 2) DO(R, 3)
#define FOR_SUMS(DO)                                                                                                   \
    FOR_SUMS_OF(DO, 0) FOR_SUMS_OF(DO, 1) FOR_SUMS_OF(DO, 2) FOR_SUMS_OF(DO, 3) FOR_SUMS_OF(DO, 4) FOR_SUMS_OF(DO, 5)
#define BEGIN_SUM(R, V)                                                                                                \
    vec sum_##R##_##V = {};                                                                                            \
    if (R < rows && V < vectors) sum_##R##_##V = *(const vec *)(p->begin + R * p->begin_row + V * LANES);
#define ADD_TO_SUM(R, V)                                                                                               \
    if (V < vectors) sum_##R##_##V = add_product(sum_##R##_##V, x, column_##V, type);
#define ADD_TO_ROW(R)                                                                                                  \
    if (R < rows) {                                                                                                    \
        vec x = repeat(a + R * a_row, type);                                                                           \
        FOR_SUMS_OF(ADD_TO_SUM, R)                                                                                     \
    }
#define KEEP_SUM(R, V)                                                                                                 \
    if (R < rows && V < vectors) {                                                                                     \
        vec x = sum_##R##_##V;                                                                                         \
        if (has_addend) x += read(p->addend, R * p->addend_row + V * LANES, LANES, c_type);                            \
        write(p->c, R * p->c_row + V * LANES, x, LANES, c_type);                                                       \
    }

INLINE void tile(const int rows, const int vectors, const int type, const int c_type, const int has_addend,
                 const Product *p) {
    const float *a = p->a, *b = p->b;
    const int64_t a_row = p->a_row, a_step = p->a_step, b_step = p->b_step;
    FOR_SUMS(BEGIN_SUM)
    for (int64_t k = p->depth; k > 0; k--, a += a_step, b += b_step) {
        vec column_0 = *(const vec *)b, column_1 = {}, column_2 = {}, column_3 = {};
        if (vectors > 1) column_1 = *(const vec *)(b + LANES);
        if (vectors > 2) column_2 = *(const vec *)(b + 2 * LANES);
        if (vectors > 3) column_3 = *(const vec *)(b + 3 * LANES);
        FOR_ROWS(ADD_TO_ROW)
    }
    FOR_SUMS(KEEP_SUM)
}

/* Constant numbers of rows and vectors let the compiler keep a whole tile in registers. */
#define VECTORS_CASE(R, V, ...)                                                                                        \
    case V:                                                                                                            \
        if (V <= VECTORS) tile(R, V, __VA_ARGS__, p);                                                                  \
        break;
#define ROWS_CASE(R, ...)                                                                                              \
    case R:                                                                                                            \
        switch (vectors) {                                                                                             \
            VECTORS_CASE(R, 1, __VA_ARGS__)                                                                            \
            VECTORS_CASE(R, 2, __VA_ARGS__)                                                                            \
            VECTORS_CASE(R, 3, __VA_ARGS__)                                                                            \
            VECTORS_CASE(R, 4, __VA_ARGS__)                                                                            \
        }                                                                                                              \
        break;
/* ...: type, c_type, has_addend */
#define TILE_OF_ANY_SIZE(NAME, ...)                                                                                    \
    static void NAME(int64_t rows, int64_t vectors, const Product *p) {                                                \
        switch (rows) {                                                                                                \
            ROWS_CASE(1, __VA_ARGS__)                                                                                  \
            ROWS_CASE(2, __VA_ARGS__)                                                                                  \
            ROWS_CASE(3, __VA_ARGS__)                                                                                  \
            ROWS_CASE(4, __VA_ARGS__)                                                                                  \
            ROWS_CASE(5, __VA_ARGS__)                                                                                  \
            ROWS_CASE(6, __VA_ARGS__)                                                                                  \
        }                                                                                                              \
    }
TILE_OF_ANY_SIZE(tile_of_floats, 0, 0, 0)
TILE_OF_ANY_SIZE(tile_of_floats_added, 0, 0, 1)
#if HAS_PAIRS
TILE_OF_ANY_SIZE(tile_of_pairs, 1, 0, 0)
TILE_OF_ANY_SIZE(tile_of_pairs_rounded, 1, 1, 0)
TILE_OF_ANY_SIZE(tile_of_pairs_rounded_added, 1, 1, 1)
#endif

/* Whether tiles of products of this type are written in `c_type`. */
INLINE int writes(int64_t type, int64_t c_type) { return c_type == 0 || (HAS_PAIRS && type == 1); }

/* One tile of at most ROWS x VECTORS. */
INLINE void multiply_tile(int64_t rows, int64_t vectors, const Product *p, int64_t type) {
#if HAS_PAIRS
    if (type == 1 && p->c_type == 0)
        tile_of_pairs(rows, vectors, p);
    else if (type == 1 && p->addend)
        tile_of_pairs_rounded_added(rows, vectors, p);
    else if (type == 1)
        tile_of_pairs_rounded(rows, vectors, p);
    else
#endif
        if (p->addend)
        tile_of_floats_added(rows, vectors, p);
    else
        tile_of_floats(rows, vectors, p);
    (void)type;
}

/* The begin of the nth of `parts` nearly equal parts of `count`. */
INLINE int64_t part_begin(int64_t n, int64_t parts, int64_t count) {
    return n * (count / parts) + least(n, count % parts);
}

/* A product of any size in float32, tile by tile; what a column of tiles reads of `b` stays in the first level of
 * cache. */
INLINE void multiply(int64_t rows, int64_t vectors, const Product *whole, int64_t type) {
    int64_t high = (rows + ROWS - 1) / ROWS, wide = (vectors + VECTORS - 1) / VECTORS;
    for (int64_t j = 0; j < wide; j++)
        for (int64_t i = 0; i < high; i++) {
            int64_t row = part_begin(i, high, rows), vector = part_begin(j, wide, vectors);
            Product p = *whole;
            p.a += row * p.a_row;
            p.b += vector * LANES;
            p.c = (float *)p.c + row * p.c_row + vector * LANES;
            if (p.begin != zeros) p.begin += row * p.begin_row + vector * LANES;
            multiply_tile(part_begin(i + 1, high, rows) - row, part_begin(j + 1, wide, vectors) - vector, &p, type);
        }
}

#endif
