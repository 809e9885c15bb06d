/* Noise spec v1 on a CPU, in one pass over memory; noise.py states the spec, kernels.py compiles and loads this file.

   Every function handles elements start .. start + n - 1 of a tensor, at `out` and `in`, which may be the same memory.
   Floating point is one float32 product (Gaussian), one float32 sum and one rounding to the output's type, never fused. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define GROUP 16 /* blocks drawn at a time, so that the compiler can draw several at once */
#define WORDS (4 * GROUP)
#define SOME 32 /* elements handled at a time */

typedef float f32;
typedef uint16_t bf16, f16;

/* Words 0..3 of blocks first .. first + GROUP - 1: Philox4x32-10. */
static void draw(uint32_t words[WORDS], uint64_t first, uint32_t stream, uint64_t tensor, uint64_t key) {
    uint32_t drawn[4][GROUP];
    for (int i = 0; i < GROUP; i++) {
        uint32_t c0 = (uint32_t)(first + (uint64_t)i), c1 = stream, c2 = (uint32_t)tensor, c3 = (uint32_t)(tensor >> 32);
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1, c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        drawn[0][i] = c0, drawn[1][i] = c1, drawn[2][i] = c2, drawn[3][i] = c3;
    }
    for (int i = 0; i < GROUP; i++)
        for (int j = 0; j < 4; j++) words[4 * i + j] = drawn[j][i];
}

static inline uint32_t bits_of(f32 x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline f32 of_bits(uint32_t u) {
    f32 x;
    memcpy(&x, &u, 4);
    return x;
}

/* Types: to float32, exactly, and from it, to the nearest (ties to even). */
static inline f32 load_f32(f32 x) { return x; }
static inline f32 store_f32(f32 x) { return x; }
static inline f32 load_bf16(bf16 h) { return of_bits((uint32_t)h << 16); }

static inline bf16 store_bf16(f32 x) {
    uint32_t u = bits_of(x);
    return x != x ? 0x7FC0 : (bf16)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static inline f32 load_f16(f16 h) {
    uint32_t u = (uint32_t)(h & 0x7FFF) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    f32 normal = of_bits(u + (112u << 23)), small = of_bits(u + (113u << 23)) - of_bits(113u << 23);
    f32 size = u >= 0x0F800000 ? of_bits(u + (224u << 23)) : u < (1u << 23) ? small : normal;
    return of_bits(bits_of(size) | sign);
}

static inline f16 store_f16(f32 x) {
    uint32_t u = bits_of(x) & 0x7FFFFFFF, sign = bits_of(x) >> 16 & 0x8000;
    uint32_t small = bits_of(of_bits(u) + 0.5f) - bits_of(0.5f); /* below 2**-14 the gap is 2**-24, as at 0.5 in float32 */
    uint32_t normal = (u - (112u << 23) + 0xFFF + (u >> 13 & 1)) >> 13;
    uint32_t large = u > 0x7F800000 ? 0x7E00 : 0x7C00;
    return (f16)(sign | (u >= 0x47800000 ? large : u < 0x38800000 ? small : normal));
}

/* What words stand for, SOME elements in order: c * z with 32 signs z or 2 entries z of the table a word, or 2 numbers u. */
static inline void signs(f32 filled[SOME], const uint32_t *words, f32 c, const f32 *table) {
    (void)table;
    for (int i = 0; i < SOME; i++) filled[i] = of_bits(bits_of(-c) ^ (words[0] >> i << 31));
}

static inline void normals(f32 filled[SOME], const uint32_t *words, f32 c, const f32 *table) {
    for (int i = 0; i < SOME; i += 2)
        filled[i] = c * table[words[i / 2] & 0xFFFF], filled[i + 1] = c * table[words[i / 2] >> 16];
}

static inline void uniforms(f32 filled[SOME], const uint32_t *words, f32 c, const f32 *table) {
    (void)c, (void)table;
    for (int i = 0; i < SOME; i += 2)
        filled[i] = (f32)(words[i / 2] & 0xFFFF), filled[i + 1] = (f32)(words[i / 2] >> 16);
}

/* Stochastic rounding, as rounding.py has it. */
static inline bf16 rounded_bf16(f32 x, uint32_t u) { return store_bf16(of_bits((bits_of(x) + u) & 0xFFFF0000)); }

static inline f16 rounded_f16(f32 x, uint32_t u) {
    const uint32_t bits = bits_of(x), u13 = u >> 3;
    const f32 small = floorf(x * 0x1p24f + (f32)u13 * 0x1p-13f) * 0x1p-24f; /* below 2**-14 the gap is 2**-24 */
    return store_f16((bits & 0x7FFFFFFF) < 0x38800000 ? small : of_bits((bits + u13) & 0xFFFFE000));
}

/* A function that maps every element x of `in` and its z (or u) to an element of `out`. */
#define PASS(NAME, STREAM, PER_BLOCK, FILL, OUT, IN, RESULT)                                                       \
    static inline OUT NAME##_one(IN x, f32 z) { return RESULT; }                                                   \
    void NAME(OUT *out, const IN *in, int64_t n, int64_t start, uint64_t tensor, uint64_t key, f32 c,              \
              const f32 *table, int threads) {                                                                     \
        const int64_t size = PER_BLOCK * GROUP, first = start / size, last = (start + n + size - 1) / size;        \
        (void)threads;                                                                                             \
        _Pragma("omp parallel for num_threads(threads) schedule(static)")                                          \
        for (int64_t g = first; g < last; g++) {                                                                   \
            uint32_t words[WORDS];                                                                                 \
            draw(words, (uint64_t)g * GROUP, STREAM, tensor, key);                                                 \
            for (int w = 0; w < WORDS; w += SOME * 4 / PER_BLOCK) {                                                \
                const int64_t at = g * size + w * (PER_BLOCK / 4) - start;                                         \
                const int64_t from = at < 0 ? -at : 0, to = at + SOME > n ? n - at : SOME;                         \
                f32 filled[SOME];                                                                                  \
                FILL(filled, words + w, c, table);                                                                 \
                if (to - from == SOME) {                                                                           \
                    _Pragma("omp simd")                                                                            \
                    for (int i = 0; i < SOME; i++) out[at + i] = NAME##_one(in[at + i], filled[i]);                \
                } else {                                                                                           \
                    for (int64_t i = from; i < to; i++) out[at + i] = NAME##_one(in[at + i], filled[i]);           \
                }                                                                                                  \
            }                                                                                                      \
        }                                                                                                          \
    }

#define AXPY(OUT, IN)                                                               \
    PASS(signs_##OUT##_##IN, 1, 128, signs, OUT, IN, store_##OUT(load_##IN(x) + z)) \
    PASS(normals_##OUT##_##IN, 2, 8, normals, OUT, IN, store_##OUT(load_##IN(x) + z))

AXPY(f32, f32)
AXPY(bf16, bf16)
AXPY(f16, f16)
AXPY(bf16, f32)
AXPY(f16, f32)
PASS(round_bf16_f32, 3, 8, uniforms, bf16, f32, rounded_bf16(x, (uint32_t)z))
PASS(round_f16_f32, 3, 8, uniforms, f16, f32, rounded_f16(x, (uint32_t)z))
