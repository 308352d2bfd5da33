/* The AVX-512 intrinsics that the kernels use, as loops over lanes: sanitizers see every access to memory, masked ones
 * too, and CPUs without AVX-512 can run the code. */

#ifndef GLOBALVIT_EMULATED_IMMINTRIN_H
#define GLOBALVIT_EMULATED_IMMINTRIN_H

#include <math.h>
#include <stdint.h>

typedef float __m512 __attribute__((vector_size(64), aligned(4), may_alias));
typedef double __m512d __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t __m512i __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t __m256i __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t __m512bh __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_NO_EXC 8
#define _CMP_NLT_UQ 21
#define EMULATED __attribute__((unused)) static
#define LANE for (int i = 0; i < 16; i++)

EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float *from) {
    __m512 x = {};
    LANE if (mask >> i & 1) x[i] = from[i];
    return x;
}

EMULATED void _mm512_mask_storeu_ps(float *to, __mmask16 mask, __m512 x) { LANE if (mask >> i & 1) to[i] = x[i]; }

EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void *from) {
    __m256i x = {};
    LANE if (mask >> i & 1) x[i] = ((const uint16_t *)from)[i];
    return x;
}

EMULATED void _mm256_mask_storeu_epi16(void *to, __mmask16 mask, __m256i x) {
    LANE if (mask >> i & 1)((uint16_t *)to)[i] = x[i];
}

EMULATED __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void *from) {
    __m512bh x = {};
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) x[i] = ((const uint16_t *)from)[i];
    return (__m512i)x;
}

EMULATED __m512i _mm512_cvtepu16_epi32(__m256i x) {
    __m512i y;
    LANE y[i] = x[i];
    return y;
}

EMULATED __m512i _mm512_slli_epi32(__m512i x, int bits) {
    LANE x[i] = (int32_t)((uint32_t)x[i] << bits);
    return x;
}

EMULATED __m512i _mm512_srli_epi32(__m512i x, int bits) {
    LANE x[i] = (int32_t)((uint32_t)x[i] >> bits);
    return x;
}

EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }

EMULATED __m512i _mm512_set1_epi32(int32_t x) {
    __m512i y;
    LANE y[i] = x;
    return y;
}

EMULATED __m512 _mm512_set1_ps(float x) {
    __m512 y;
    LANE y[i] = x;
    return y;
}

/* To the nearest bfloat16, ties to even; numbers below the normal range become 0, as the instruction has it. */
EMULATED uint16_t nearest_bf16(float x) {
    union {
        float value;
        uint32_t bits;
    } u = {.value = x};
    if (isnan(x)) return (uint16_t)(u.bits >> 16 | 0x40);
    if (!(u.bits & 0x7f800000u)) return (uint16_t)(u.bits >> 16 & 0x8000u);
    return (uint16_t)((u.bits + 0x7fffu + (u.bits >> 16 & 1)) >> 16);
}

EMULATED float wide(uint16_t x) {
    union {
        uint32_t bits;
        float value;
    } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

EMULATED __m256i _mm512_cvtneps_pbh(__m512 x) {
    __m256i y;
    LANE y[i] = nearest_bf16(x[i]);
    return y;
}

EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
    __m512bh y;
    LANE y[i] = nearest_bf16(low[i]), y[16 + i] = nearest_bf16(high[i]);
    return y;
}

EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    LANE {
        sum[i] = fmaf(wide(a[2 * i + 1]), wide(b[2 * i + 1]), sum[i]);
        sum[i] = fmaf(wide(a[2 * i]), wide(b[2 * i]), sum[i]);
    }
    return sum;
}

EMULATED __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
    __m512 y;
    LANE y[i] = (i & 1 ? b : a)[i / 4 * 4 + i % 4 / 2];
    return y;
}

EMULATED __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
    __m512 y;
    LANE y[i] = (i & 1 ? b : a)[i / 4 * 4 + 2 + i % 4 / 2];
    return y;
}

EMULATED __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
    __m512d y;
    for (int i = 0; i < 8; i++) y[i] = (i & 1 ? b : a)[i / 2 * 2];
    return y;
}

EMULATED __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
    __m512d y;
    for (int i = 0; i < 8; i++) y[i] = (i & 1 ? b : a)[i / 2 * 2 + 1];
    return y;
}

EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int order) {
    __m512 y;
    LANE y[i] = (i < 8 ? a : b)[(order >> i / 4 * 2 & 3) * 4 + i % 4];
    return y;
}

EMULATED float _mm512_reduce_add_ps(__m512 x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

EMULATED float _mm512_reduce_max_ps(__m512 x) {
    float most = x[0];
    LANE most = x[i] > most ? x[i] : most;
    return most;
}

EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {
    LANE a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

EMULATED __m512 _mm512_min_ps(__m512 a, __m512 b) {
    LANE a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}

EMULATED __m512 _mm512_roundscale_ps(__m512 x, int how) {
    (void)how;
    LANE x[i] = rintf(x[i]);
    return x;
}

EMULATED __m512 _mm512_scalef_ps(__m512 x, __m512 n) {
    LANE x[i] = isnan(n[i]) ? n[i] : ldexpf(x[i], (int)fmaxf(-500.0f, fminf(500.0f, floorf(n[i]))));
    return x;
}

EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
    (void)how;
    __mmask16 mask = 0;
    LANE mask |= (__mmask16)(!(a[i] < b[i]) << i);
    return mask;
}

EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
    LANE x[i] = mask >> i & 1 ? x[i] : 0;
    return x;
}

EMULATED __m512 _mm512_rcp14_ps(__m512 x) { return 1.0f / x; }

#endif
