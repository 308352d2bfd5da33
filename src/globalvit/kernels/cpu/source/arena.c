#include "arena.h"

#include <omp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

/* Parts begin on pages of their own, so that no two threads write to the same cache line. */
#define PAGE 1024
/* Arenas above this many bytes are freed after the call, and no more than this many are kept. */
#define MOST_BYTES (64 << 20)
#define MOST_KEPT 16

struct Arena {
    Arena *next;
    float *floats;
    int64_t size, shared, per_thread; /* in floats */
};

static Arena *kept;
static int64_t bytes_kept, number_kept;
static atomic_flag lock = ATOMIC_FLAG_INIT;

static void acquire(void) {
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
    }
}
static void release(void) { atomic_flag_clear_explicit(&lock, memory_order_release); }

static int64_t whole_pages(int64_t floats) { return (floats + PAGE - 1) / PAGE * PAGE; }

static Arena *pop(void) {
    acquire();
    Arena *arena = kept;
    if (arena) {
        kept = arena->next;
        bytes_kept -= arena->size * sizeof(float);
        number_kept--;
    }
    release();
    return arena;
}

static void destroy(Arena *arena) {
    free(arena->floats);
    free(arena);
}

Arena *take_arena(int64_t shared, int64_t per_thread) {
    Arena *arena = pop();
    if (arena == NULL) arena = calloc(1, sizeof(Arena));
    if (arena == NULL) return NULL;
    arena->shared = whole_pages(shared);
    arena->per_thread = whole_pages(per_thread);
    int64_t size = arena->shared + arena->per_thread * omp_get_max_threads();
    if (size > arena->size) {
        free(arena->floats);
        arena->size = 0;
        if (posix_memalign((void **)&arena->floats, 64, size * sizeof(float))) {
            arena->floats = NULL;
            destroy(arena);
            return NULL;
        }
        arena->size = size;
    }
    return arena;
}

void give_back(Arena *arena) {
    int64_t bytes = arena->size * (int64_t)sizeof(float);
    int is_kept = 0;
    acquire();
    if (bytes <= MOST_BYTES && number_kept < MOST_KEPT) {
        arena->next = kept;
        kept = arena;
        bytes_kept += bytes;
        number_kept++;
        is_kept = 1;
    }
    release();
    if (!is_kept) destroy(arena);
}

float *shared_floats(const Arena *arena) { return arena->floats; }
float *own_floats(const Arena *arena) {
    return arena->floats + arena->shared + omp_get_thread_num() * arena->per_thread;
}

int64_t arena_bytes_kept(void) {
    acquire();
    int64_t bytes = bytes_kept;
    release();
    return bytes;
}
