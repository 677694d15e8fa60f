/*
 * The PCI functions of a directory as sysfs's bus/pci/devices, as they were at the start.
 */
#include <stdbool.h>
#include <stddef.h>

enum { N_BARS = 6 };

struct bar {
    size_t size; /* 0: there is none */
    bool prefetchable;
    char *memory; /* NULL: not mapped yet */
};

struct function {
    char address[16], link[24], target[24];
    unsigned id, instance; /* vendor << 16 | device, and the how many-th of that id */
    struct bar bars[N_BARS];
};

/* In the order of their addresses. */
extern struct function *functions;
extern size_t n_functions;

/* Read ids and resources of all of them; false, with a message, if that fails. */
bool learn_functions(const char *devices);

/* NULL if there is none. */
struct function *find_address(const char *address);
struct function *find_link(const char *name);

/* Map a BAR that is not mapped yet; 0 or an errno. */
int map_bar(const struct function *function, int index);
