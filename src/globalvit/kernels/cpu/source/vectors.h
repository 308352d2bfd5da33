/* Vectors of floats as wide as the CPU's registers, numbers stored as float32 or bfloat16, and functions of vectors.
 *
 * A number's type in memory, wherever a variable is called `type`: 0 is float32, 1 is bfloat16.
 */

#ifndef GLOBALVIT_VECTORS_H
#define GLOBALVIT_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

/* Whether products of bfloat16 work on pairs: two numbers next to each other along the depth of a product occupy the
 * place of one float, and their dot product is added in float32. */
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

/* A register tile of VECTORS x ROWS sums fits into the registers together with its operands. */
#if defined(__AVX512F__)
#define LANES 16
#define VECTORS 4
#elif defined(__AVX2__)
#define LANES 8
#define VECTORS 2
#else
#define LANES 4
#define VECTORS 4
#endif
#define ROWS 6
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t bf16;

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t bytes_of(int64_t type) { return type == 0 ? sizeof(float) : sizeof(bf16); }

INLINE float from_bf16(bf16 x) {
    union {
        uint32_t bits;
        float value;
    } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

INLINE bf16 to_bf16(float x) {
    union {
        float value;
        uint32_t bits;
    } u = {.value = x};
    if ((u.bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0; /* NaN */
    return (bf16)((u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16);
}

/* A bit for each of the first `count` lanes; all lanes if there are more, none if `count` is negative. */
#if defined(__AVX512F__)
INLINE __mmask16 mask_of(int64_t count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}
#endif

/* Up to LANES numbers from `from[at]` on, zeros in the lanes beyond `count`. */
INLINE vec read(const void *from, int64_t at, int64_t count, int64_t type) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 mask = mask_of(count);
    if (type == 0) return (vec)_mm512_maskz_loadu_ps(mask, (const float *)from + at);
    __m256i bits = _mm256_maskz_loadu_epi16(mask, (const bf16 *)from + at);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
    vec x = {};
    if (type == 0) {
        if (count >= LANES) return *(const vec *)((const float *)from + at);
        for (int64_t i = 0; i < count; i++) x[i] = ((const float *)from)[at + i];
    } else {
#if defined(__AVX2__)
        if (count >= LANES) {
            __m128i bits = _mm_loadu_si128((const __m128i *)((const bf16 *)from + at));
            return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
        }
#endif
        for (int64_t i = 0; i < least(count, LANES); i++) x[i] = from_bf16(((const bf16 *)from)[at + i]);
    }
    return x;
#endif
}

/* Write the first `count` lanes, LANES at most, to `to[at]` and after. */
INLINE void write(void *to, int64_t at, vec x, int64_t count, int64_t type) {
#if HAS_PAIRS
    __mmask16 mask = mask_of(count);
    if (type == 0)
        _mm512_mask_storeu_ps((float *)to + at, mask, (__m512)x);
    else
        _mm256_mask_storeu_epi16((bf16 *)to + at, mask, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    if (type == 0) {
        if (count >= LANES)
            *(vec *)((float *)to + at) = x;
        else
            for (int64_t i = 0; i < count; i++) ((float *)to)[at + i] = x[i];
    } else {
        for (int64_t i = 0; i < least(count, LANES); i++) ((bf16 *)to)[at + i] = to_bf16(x[i]);
    }
#endif
}

/* How many numbers one step along the depth of a product takes. */
INLINE int64_t numbers_a_step(int64_t type) { return type == 1 && HAS_PAIRS ? 2 : 1; }
INLINE int64_t steps_of(int64_t numbers, int64_t type) {
    return (numbers + numbers_a_step(type) - 1) / numbers_a_step(type);
}

/* Round two vectors of floats to one vector of pairs: the first in the lower halves. */
INLINE vec pair_up(vec first, vec second) {
#if HAS_PAIRS
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
    return (vec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#else
    (void)second;
    return first;
#endif
}

/* For floats that are exact in bfloat16: such a float is its upper half. */
INLINE vec join(vec first, vec second) {
#if HAS_PAIRS
    return (vec)_mm512_or_si512(_mm512_srli_epi32((__m512i)first, 16), (__m512i)second);
#else
    (void)second;
    return first;
#endif
}

/* Up to LANES steps of a row that has `left` more numbers from `step` on. The row's type may differ from the product's.
 */
INLINE vec read_steps(const void *row, int64_t step, int64_t left, int64_t row_type, int64_t type) {
#if HAS_PAIRS
    if (type == 1 && row_type == 1) {
        __mmask32 mask = left >= 2 * LANES ? 0xffffffffu : left <= 0 ? 0 : (__mmask32)((1ull << left) - 1);
        return (vec)_mm512_maskz_loadu_epi16(mask, (const bf16 *)row + 2 * step);
    }
    if (type == 1) {
        vec first = read(row, 2 * step, left, 0),
            second = left > LANES ? read(row, 2 * step + LANES, left - LANES, 0) : (vec){};
        return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    }
#endif
    (void)type;
    return read(row, step, left, row_type);
}

/* The same number in every lane. Not `(vec){} + x`: adding 0 turns -0 into 0, so compilers must keep that addition in
 * every inner loop, while subtracting 0 changes no number. */
INLINE vec splat(float x) { return x - (vec){}; }

/* a * b + c with one rounding if the CPU can: the same in every loop, whatever the compiler makes of it. Not the
 * intrinsic, with which GCC 12 copies sums around in loops. */
INLINE vec multiply_then_add(vec a, vec b, vec c) {
#if defined(GLOBALVIT_EMULATED) || !(defined(__AVX512F__) || (defined(__FMA__) && defined(__AVX2__)))
    return a * b + c;
#else
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(b), "v"(a));
    return c;
#endif
}

/* Transpose a square of LANES x LANES, in rounds that swap numbers between rows 1, 2, 4 or 8 apart. */
INLINE void transpose(vec square[LANES]) {
#if LANES == 16
    vec half[16];
    for (int r = 0; r < 16; r += 2) {
        half[r] = (vec)_mm512_unpacklo_ps((__m512)square[r], (__m512)square[r + 1]);
        half[r + 1] = (vec)_mm512_unpackhi_ps((__m512)square[r], (__m512)square[r + 1]);
    }
    for (int r = 0; r < 16; r += 4)
        for (int i = 0; i < 2; i++) {
            square[r + 2 * i] = (vec)_mm512_unpacklo_pd((__m512d)half[r + i], (__m512d)half[r + i + 2]);
            square[r + 2 * i + 1] = (vec)_mm512_unpackhi_pd((__m512d)half[r + i], (__m512d)half[r + i + 2]);
        }
    for (int r = 0; r < 16; r += 8)
        for (int i = 0; i < 4; i++) {
            half[r + i] = (vec)_mm512_shuffle_f32x4((__m512)square[r + i], (__m512)square[r + i + 4], 0x88);
            half[r + i + 4] = (vec)_mm512_shuffle_f32x4((__m512)square[r + i], (__m512)square[r + i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        square[i] = (vec)_mm512_shuffle_f32x4((__m512)half[i], (__m512)half[i + 8], 0x88);
        square[i + 8] = (vec)_mm512_shuffle_f32x4((__m512)half[i], (__m512)half[i + 8], 0xdd);
    }
#elif defined(__AVX2__)
    vec half[8];
    for (int r = 0; r < 8; r += 2) {
        half[r] = (vec)_mm256_unpacklo_ps((__m256)square[r], (__m256)square[r + 1]);
        half[r + 1] = (vec)_mm256_unpackhi_ps((__m256)square[r], (__m256)square[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; i++) {
            square[r + 2 * i] = (vec)_mm256_unpacklo_pd((__m256d)half[r + i], (__m256d)half[r + i + 2]);
            square[r + 2 * i + 1] = (vec)_mm256_unpackhi_pd((__m256d)half[r + i], (__m256d)half[r + i + 2]);
        }
    for (int i = 0; i < 4; i++) {
        half[i] = (vec)_mm256_permute2f128_ps((__m256)square[i], (__m256)square[i + 4], 0x20);
        half[i + 4] = (vec)_mm256_permute2f128_ps((__m256)square[i], (__m256)square[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) square[i] = half[i];
#else
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < r; c++) {
            float number = square[r][c];
            square[r][c] = square[c][r];
            square[c][r] = number;
        }
#endif
}

INLINE float total(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}

INLINE float largest(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#elif defined(__AVX2__)
    __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
    float most = x[0];
    for (int lane = 1; lane < LANES; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
#endif
}

/* Where a number compares as NaN, `larger` and `smaller` return `b`. */
#if defined(__AVX512F__)
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec nearest(vec x) {
    return (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vec times_power(vec x, vec n) { return (vec)_mm512_scalef_ps((__m512)x, (__m512)n); }
/* `x` where it is at least `low` or NaN, 0 elsewhere. */
INLINE vec zero_below(float low, vec bound, vec x) {
    return (vec)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)bound, _mm512_set1_ps(low), _CMP_NLT_UQ), (__m512)x);
}
/* 1 / x to 14 bits, and with one step of Newton's method to float32's precision: a division takes longer than both. */
INLINE vec rough_inverse(vec x) { return (vec)_mm512_rcp14_ps((__m512)x); }
INLINE vec inverse(vec x) {
    vec y = rough_inverse(x);
    return y * (2.0f - x * y);
}
#else
#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits */
#if defined(__AVX2__)
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec smaller(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec nearest(vec x) { return (vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#else
INLINE vec larger(vec a, vec b) { return (vec)(((ivec)a & (ivec)(a > b)) | ((ivec)b & ~(ivec)(a > b))); }
INLINE vec smaller(vec a, vec b) { return (vec)(((ivec)a & (ivec)(a < b)) | ((ivec)b & ~(ivec)(a < b))); }
INLINE vec nearest(vec x) { return (x + MAGIC) - MAGIC; }
#endif
/* x * 2^n for whole n in [-126, 127]: the low bits of n + 127 + MAGIC become the exponent of a factor. */
INLINE vec times_power(vec x, vec n) { return x * (vec)((ivec)(n + (MAGIC + 127.0f)) << 23); }
INLINE vec zero_below(float low, vec bound, vec x) { return (vec)((ivec)x & ~(ivec)(bound < low)); }
INLINE vec inverse(vec x) { return 1.0f / x; }
INLINE vec rough_inverse(vec x) { return inverse(x); }
#endif

/* The functions below take the type that their result is rounded to: bfloat16 needs fewer digits. */

/* `x`, at least `low`; NaN stays NaN. */
INLINE vec at_least(float low, vec x) { return larger(splat(low), x); }
INLINE vec at_most(float high, vec x) { return smaller(splat(high), x); }

/* 2^x for x in [-126, 127], to 3e-7 relative or, for bfloat16, to 8e-5: the nearest power of two times a polynomial on
 * [-1/2, 1/2]. */
INLINE vec power_of_two(vec x, int64_t type) {
    vec n = nearest(x), f = x - n, p;
    if (type == 1) {
        p = f * 0.05517166176f + 0.2426111216f;
        p = p * f + 0.6932609868f;
        return times_power(p * f + 0.9999280736f, n);
    }
    p = f * 0.001327647152f + 0.009675541331f;
    p = p * f + 0.05550713275f;
    p = p * f + 0.2402211972f;
    p = p * f + 0.6931469671f;
    return times_power(p * f + 1.000000072f, n);
}

/* erf(x / sqrt 2) to 2e-8: a rational function fitted on [-4, 4] by weighted least squares; 1 to 2e-8 beyond. */
INLINE vec error_function(vec x) {
    vec y = at_least(-4.0f, at_most(4.0f, x * 0.707106781f)), z = y * y;
    vec p = z * 1.974861827e-06f + 2.880390189e-04f, q = z * 3.748107347e-05f + 1.216328011e-03f;
    p = p * z + 4.003507661e-03f;
    q = q * z + 1.544414020e-02f;
    p = p * z + 5.346704222e-02f;
    q = q * z + 1.164750542e-01f;
    p = p * z + 1.962456453e-01f;
    q = q * z + 5.072493342e-01f;
    p = p * z + 1.128378976e+00f;
    q = q * z + 1.0f;
    return y * p * inverse(q);
}

/* The share of the normal distribution below x; 0 below -8, where its last digits would spoil x times the share. For
 * bfloat16 1 / (1 + 2^-u), where x times a polynomial of x^2 is fitted to the share's logit u: x times the share is
 * then right to 2^-11 relative, or 1e-5. */
INLINE vec normal_share(vec x, int64_t type) {
    if (type == 0) return zero_below(-8.0f, x, 0.5f + 0.5f * error_function(x));
    vec y = at_most(8.0f, at_least(-8.0f, x)), z = y * y;
    vec p = z * 1.119616073e-03f - 1.075522807e-01f;
    p = p * z - 2.300122461e+00f;
    return zero_below(-8.0f, x, rough_inverse(1.0f + power_of_two(y * p, type)));
}

INLINE vec gelu(vec x, int64_t type) { return x * normal_share(x, type); }

/* x e^(-x^2 / 2) / sqrt(2 pi), 0 beyond +-13: the derivative of GELU is the normal distribution's share below x, plus
 * this. */
INLINE vec times_density(vec x, int64_t type) {
    vec y = x * x * -0.721347520f;
    return x * zero_below(-126.0f, y, power_of_two(at_least(-126.0f, y), type)) * 0.398942280f;
}

#endif
