/* Scratch memory of one call: a part for each thread, and one that all threads share.
 *
 * Asking the system for memory at every call, and getting empty pages, takes longer than a small layer. Arenas are
 * therefore kept for later calls: at most as many as ran at the same time, and none that is large.
 */

#ifndef GLOBALVIT_ARENA_H
#define GLOBALVIT_ARENA_H

#include <stdint.h>

typedef struct Arena Arena;

/* An arena with `shared` floats for all threads and `per_thread` floats for each of as many threads as OpenMP may
 * start; NULL if there is no memory. The content is undefined. */
Arena *take_arena(int64_t shared, int64_t per_thread);
void give_back(Arena *arena);

/* Both are aligned to 64 bytes. */
float *shared_floats(const Arena *arena);
float *own_floats(const Arena *arena);

/* Bytes that are kept for later calls. */
int64_t arena_bytes_kept(void);

#endif
