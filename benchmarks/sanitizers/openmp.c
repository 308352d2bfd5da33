/* The part of GCC's OpenMP runtime that the kernels use, on plain POSIX threads. ThreadSanitizer understands these; the
 * barriers of libgomp it does not, and would report every parallel loop. */

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { THREADS = 4 };

typedef struct {
    void (*run)(void *);
    void *data;
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    long next, end, step, chunk; /* of the current loop */
    int loops, waiting, round;
} Team;

typedef struct {
    Team *team;
    int number, loops;
} Member;

static __thread Member member;

int omp_get_max_threads(void) { return THREADS; }
int omp_get_thread_num(void) { return member.number; }
int omp_get_num_threads(void) { return member.team ? THREADS : 1; }

static void *work(void *given) {
    Member former = member;
    member = *(Member *)given;
    member.team->run(member.team->data);
    member = former;
    return NULL;
}

void GOMP_parallel(void (*run)(void *), void *data, unsigned threads, unsigned flags) {
    (void)threads, (void)flags;
    Team team = {.run = run, .data = data};
    Member members[THREADS];
    pthread_t others[THREADS];
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.arrived, NULL);
    for (int i = 0; i < THREADS; i++) members[i] = (Member){.team = &team, .number = i};
    for (int i = 1; i < THREADS; i++)
        if (pthread_create(&others[i], NULL, work, &members[i])) abort();
    work(&members[0]);
    for (int i = 1; i < THREADS; i++) pthread_join(others[i], NULL);
    pthread_mutex_destroy(&team.lock);
    pthread_cond_destroy(&team.arrived);
}

void GOMP_barrier(void) {
    Team *team = member.team;
    if (!team) return;
    pthread_mutex_lock(&team->lock);
    int round = team->round;
    if (++team->waiting == THREADS) {
        team->waiting = 0;
        team->round++;
        pthread_cond_broadcast(&team->arrived);
    }
    while (round == team->round) pthread_cond_wait(&team->arrived, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *start, long *end) {
    Team *team = member.team;
    pthread_mutex_lock(&team->lock);
    *start = team->next;
    *end = *start + team->chunk * team->step < team->end ? *start + team->chunk * team->step : team->end;
    team->next = *end;
    pthread_mutex_unlock(&team->lock);
    return *start < *end;
}

/* Every loop ends with a barrier, so that a team has one at a time. */
bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long step, long chunk, long *first, long *last) {
    Team *team = member.team;
    pthread_mutex_lock(&team->lock);
    if (team->loops == member.loops++) {
        team->loops++;
        team->next = begin, team->end = end, team->step = step, team->chunk = chunk;
    }
    pthread_mutex_unlock(&team->lock);
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end(void) { GOMP_barrier(); }
void GOMP_loop_end_nowait(void) { GOMP_barrier(); }
