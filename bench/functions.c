/*
 * What the reference knows of PCI functions. See functions.h.
 */
#define _GNU_SOURCE
#include "functions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PREFETCHABLE = 0x2000 }; /* IORESOURCE_PREFETCH, include/linux/ioport.h */

struct function *functions;
size_t n_functions;
static const char *devices;
static struct function **by_link;

static int compare_address(const void *name, const void *function)
{
    return strcmp(name, ((const struct function *)function)->address);
}

static int compare_link(const void *left, const void *right)
{
    const struct function *a = *(struct function *const *)left;
    const struct function *b = *(struct function *const *)right;
    if (a->id != b->id)
        return a->id < b->id ? -1 : 1;
    if (a->instance != b->instance)
        return a->instance < b->instance ? -1 : 1;
    return 0;
}

struct function *find_address(const char *address)
{
    return bsearch(address, functions, n_functions, sizeof *functions, compare_address);
}

struct function *find_link(const char *name)
{
    unsigned vendor, device, instance = 0;
    if (sscanf(name, "%4x:%4x.%u", &vendor, &device, &instance) < 2)
        return NULL;
    struct function wanted = {.id = vendor << 16 | device, .instance = instance}, *key = &wanted;
    struct function **found = bsearch(&key, by_link, n_functions, sizeof *by_link, compare_link);
    return found ? *found : NULL;
}

static FILE *attribute(const struct function *function, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/%s", devices, function->address, name);
    FILE *file = fopen(path, "re");
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

static unsigned read_number(const struct function *function, const char *name)
{
    unsigned number = 0;
    FILE *file = attribute(function, name);
    if (fscanf(file, "%x", &number) != 1)
        exit(1);
    fclose(file);
    return number;
}

static void learn(struct function *function, const char *address)
{
    unsigned long start, end, flags;
    snprintf(function->address, sizeof function->address, "%.15s", address);
    snprintf(function->target, sizeof function->target, "pci/%s", function->address);
    function->id = read_number(function, "vendor") << 16 | read_number(function, "device");
    FILE *file = attribute(function, "resource");
    for (int n = 0; n < N_BARS && fscanf(file, "%lx %lx %lx", &start, &end, &flags) == 3; n++) {
        function->bars[n].size = flags ? end - start + 1 : 0;
        function->bars[n].prefetchable = flags & PREFETCHABLE;
    }
    fclose(file);
}

static void name_links(void)
{
    for (size_t n = 0; n < n_functions; n++) {
        by_link[n] = &functions[n];
        functions[n].instance = (unsigned)n; /* for now: in the order of addresses */
    }
    qsort(by_link, n_functions, sizeof *by_link, compare_link);
    for (size_t n = 0; n < n_functions; n++) {
        struct function *function = by_link[n];
        bool first = n == 0 || by_link[n - 1]->id != function->id;
        function->instance = first ? 0 : by_link[n - 1]->instance + 1;
        char *name = function->link;
        int used = snprintf(name, sizeof function->link, "%04x:%04x", function->id >> 16,
                            function->id & 0xffff);
        if (!first)
            snprintf(name + used, sizeof function->link - (size_t)used, ".%u", function->instance);
    }
}

static int is_address(const struct dirent *entry)
{
    return strchr(entry->d_name, ':') != NULL;
}

bool learn_functions(const char *directory)
{
    struct dirent **names;
    devices = directory;
    int found = scandir(devices, &names, is_address, alphasort);
    if (found < 0) {
        perror(devices);
        return false;
    }
    n_functions = (size_t)found;
    functions = calloc(n_functions + 1, sizeof *functions);
    by_link = calloc(n_functions + 1, sizeof *by_link);
    if (!functions || !by_link)
        return false;
    for (size_t n = 0; n < n_functions; n++) {
        learn(&functions[n], names[n]->d_name);
        free(names[n]);
    }
    free(names);
    name_links();
    return true;
}

int map_bar(const struct function *function, int index)
{
    char path[4096];
    struct bar *bar = &functions[function - functions].bars[index];
    snprintf(path, sizeof path, "%s/%s/resource%d", devices, function->address, index);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    void *memory = mmap(NULL, bar->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int failed = memory == MAP_FAILED ? errno : 0;
    close(fd);
    if (!failed)
        bar->memory = memory;
    return failed;
}
