/*
 * What client.c can do, one operation at a time, and what it is told about that.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct kind {
    const char *name;
    void (*prepare)(void);
    void (*operate)(void);
    unsigned batch;  /* operations between two looks at the clock */
    bool has_places; /* it goes from offset to offset, n_offsets of them */
};

/* See client.c; `arguments` from PATH or PROGRAM on, `give_up` in ns. */
extern char **arguments;
extern size_t length, span, n_offsets;
extern bool at_random;
extern uint64_t give_up;

/* The ns that longlist would have taken more if it had not given up. */
extern uint64_t reckoned;

/* Ends the process if there is none of that name. */
const struct kind *kind_of(const char *name);

/* Ends the process with a message and errno's. */
__attribute__((format(printf, 1, 2), noreturn)) void fail(const char *format, ...);

/* In ns. */
uint64_t now(clockid_t clock);
