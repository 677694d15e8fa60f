/*
 * Do one thing to a file over and over, and say how long it took. In C, as an interpreter would
 * hide what is measured.
 *
 * usage: client [OPTIONS] KIND PATH
 *        client [OPTIONS] run PROGRAM [ARGUMENT...]
 *
 *   read, write   pread or pwrite of LENGTH bytes
 *   open          open, pread of LENGTH bytes, close
 *   stat          stat, of a link itself
 *   list          the names in a directory
 *   longlist      the same, with stat of each and readlink of links, as ls -l
 *   load          one 32-bit load from a mapping of the file
 *   copy          memcpy of LENGTH bytes out of a mapping
 *   store         memcpy of LENGTH bytes into a mapping
 *   run           a process
 *
 *   -l LENGTH  -s SPAN  -r          the first SPAN bytes are used, in order or at random
 *   -t MS  -w MS                    for how long; before that without counting, each place once
 *   -m MS                           longlist gives up after that; the rest is reckoned
 *   -c CPU  -j CLIENTS              pinned to one CPU; so many processes at once
 *   -d PID                          whose CPU time is looked at, too
 *
 * Prints JSON: operations; wall time, CPU time of the clients and of that process in ns; whether
 * any was given up.
 */
#define _GNU_SOURCE
#include "operations.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_CLIENTS = 64 };
static const uint64_t MS = 1000000;
static pid_t daemon_pid;

struct result {
    uint64_t operations, started, ended, cpu, reckoned, daemon_started, daemon_ended;
};

struct shared {
    pthread_barrier_t barrier;
    struct result results[MAX_CLIENTS];
};

/* How many operations were done in so many ns; so many at least, and one. */
static uint64_t repeat(const struct kind *kind, uint64_t started, uint64_t ns, uint64_t least)
{
    uint64_t done = 0;
    do {
        for (unsigned n = 0; n < kind->batch; n++)
            kind->operate();
        done += kind->batch;
    } while (now(CLOCK_MONOTONIC) - started < ns || done < least);
    return done;
}

static uint64_t daemon_cpu(void)
{
    clockid_t clock;
    if (daemon_pid == 0)
        return 0;
    errno = clock_getcpuclockid(daemon_pid, &clock);
    if (errno)
        fail("process %d", (int)daemon_pid);
    return now(clock);
}

static void client(const struct kind *kind, uint64_t warm_ms, uint64_t ms, struct shared *shared,
                   int number)
{
    struct result mine = {0};
    kind->prepare();
    /* Each place once at least: pages of a plain file are mapped when they are first touched. */
    if (warm_ms)
        repeat(kind, now(CLOCK_MONOTONIC), warm_ms * MS,
               kind->has_places ? n_offsets : 0);
    reckoned = 0;
    pthread_barrier_wait(&shared->barrier);
    uint64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    mine.daemon_started = daemon_cpu();
    mine.started = now(CLOCK_MONOTONIC);
    mine.operations = repeat(kind, mine.started, ms * MS, 0);
    mine.ended = now(CLOCK_MONOTONIC);
    mine.daemon_ended = daemon_cpu();
    mine.cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    mine.reckoned = reckoned;
    shared->results[number] = mine;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void report(const struct result *results, int clients)
{
    struct result sum = {.started = UINT64_MAX, .daemon_started = UINT64_MAX};
    for (int n = 0; n < clients; n++) {
        const struct result *one = &results[n];
        sum.operations += one->operations;
        sum.cpu += one->cpu;
        sum.reckoned += one->reckoned;
        sum.started = least(sum.started, one->started);
        sum.ended = most(sum.ended, one->ended);
        sum.daemon_started = least(sum.daemon_started, one->daemon_started);
        sum.daemon_ended = most(sum.daemon_ended, one->daemon_ended);
    }
    printf("{\"operations\": %ju, \"ns\": %ju, \"cpu_ns\": %ju, \"daemon_ns\": %ju, "
           "\"partial\": %s}\n",
           (uintmax_t)sum.operations, (uintmax_t)(sum.ended - sum.started + sum.reckoned),
           (uintmax_t)sum.cpu, (uintmax_t)(sum.daemon_ended - sum.daemon_started),
           sum.reckoned ? "true" : "false");
}

static void pin(size_t cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("CPU %zu", cpu);
}

static struct shared *share(unsigned clients)
{
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t attributes;
    if (shared == MAP_FAILED)
        fail("shared memory");
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    errno = pthread_barrier_init(&shared->barrier, &attributes, clients);
    if (errno)
        fail("%u clients", clients);
    return shared;
}

int main(int argc, char **argv)
{
    uint64_t ms = 100, warm_ms = 0;
    int option, clients = 1, status = 0;
    while ((option = getopt(argc, argv, "+c:d:j:l:m:rs:t:w:")) != -1) {
        switch (option) {
        case 'c': pin(strtoull(optarg, NULL, 0)); break;
        case 'd': daemon_pid = atoi(optarg); break;
        case 'j': clients = atoi(optarg); break;
        case 'l': length = strtoull(optarg, NULL, 0); break;
        case 'm': give_up = strtoull(optarg, NULL, 0) * MS; break;
        case 'r': at_random = true; break;
        case 's': span = strtoull(optarg, NULL, 0); break;
        case 't': ms = strtoull(optarg, NULL, 0); break;
        case 'w': warm_ms = strtoull(optarg, NULL, 0); break;
        default: return 2;
        }
    }
    errno = EINVAL;
    if (clients < 1 || clients > MAX_CLIENTS || length < 1 || argc - optind < 2)
        fail("usage");
    const struct kind *kind = kind_of(argv[optind]);
    arguments = argv + optind + 1;
    struct shared *shared = share((unsigned)clients);
    for (int n = 0; n < clients; n++) {
        pid_t pid = fork();
        if (pid < 0)
            fail("fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            client(kind, warm_ms, ms, shared, n);
            exit(0);
        }
    }
    for (int n = 0; n < clients; n++)
        if (wait(&status) < 0 || status != 0)
            return 1; /* the others, who wait at the barrier for it, end with this process */
    report(shared->results, clients);
    return 0;
}
