/*
 * The operations of client.c. See operations.h.
 */
#define _GNU_SOURCE
#include "operations.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_OFFSETS = 1024 };

char **arguments;
size_t length = 4, span = 4096, n_offsets;
bool at_random;
uint64_t give_up = 2000000000, reckoned;

extern char **environ;

static size_t offsets[N_OFFSETS], place;
static int fd = -1;
static char *buffer, *memory;

void fail(const char *format, ...)
{
    int number = errno;
    va_list rest;
    va_start(rest, format);
    fprintf(stderr, "client: ");
    vfprintf(stderr, format, rest);
    fprintf(stderr, ": %s\n", strerror(number));
    exit(1);
}

uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

static uint64_t random_number(void)
{
    static uint64_t state = 88172645463325252U; /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Always the same offsets, so that all daemons touch the same pages. */
static void choose_offsets(void)
{
    size_t places = span / length;
    if (places == 0)
        fail("-s %zu is less than -l %zu", span, length);
    n_offsets = at_random || places > N_OFFSETS ? N_OFFSETS : places;
    for (size_t n = 0; n < n_offsets; n++)
        offsets[n] = (at_random ? random_number() % places : n % places) * length;
}

static off_t next_offset(void)
{
    if (place == n_offsets)
        place = 0;
    return (off_t)offsets[place++];
}

static void prepare_buffer(void)
{
    choose_offsets();
    buffer = aligned_alloc(4096, (length + 4095) / 4096 * 4096);
    if (!buffer)
        fail("%zu bytes", length);
    memset(buffer, 0x5a, length);
}

static void open_file(int flags)
{
    fd = open(*arguments, flags | O_CLOEXEC);
    if (fd < 0)
        fail("%s", *arguments);
}

static void prepare_read(void)
{
    prepare_buffer();
    open_file(O_RDONLY);
}

static void prepare_write(void)
{
    prepare_buffer();
    open_file(O_WRONLY);
}

static void prepare_mapping(void)
{
    prepare_buffer();
    open_file(O_RDWR);
    memory = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED)
        fail("mapping of %s", *arguments);
}

static void prepare_nothing(void)
{
}

static void do_read(void)
{
    off_t offset = next_offset();
    if (pread(fd, buffer, length, offset) != (ssize_t)length)
        fail("read of %zu at %#jx of %s", length, (intmax_t)offset, *arguments);
}

static void do_write(void)
{
    off_t offset = next_offset();
    if (pwrite(fd, buffer, length, offset) != (ssize_t)length)
        fail("write of %zu at %#jx of %s", length, (intmax_t)offset, *arguments);
}

static void do_open(void)
{
    open_file(O_RDONLY);
    do_read();
    if (close(fd))
        fail("close of %s", *arguments);
}

static void do_stat(void)
{
    struct stat st;
    if (lstat(*arguments, &st))
        fail("%s", *arguments);
}

static DIR *open_directory(void)
{
    DIR *directory = opendir(*arguments);
    if (!directory)
        fail("%s", *arguments);
    return directory;
}

static void do_list(void)
{
    DIR *directory = open_directory();
    while (readdir(directory))
        ;
    closedir(directory);
}

struct entry {
    bool is_link;
    char name[32];
};

/* All entries but . and .., in an order of chance. */
static struct entry *entries_of(DIR *directory, size_t *n_entries)
{
    struct entry *entries = NULL;
    struct dirent *found;
    size_t n = 0;
    while ((found = readdir(directory))) {
        if (found->d_name[0] == '.')
            continue;
        entries = reallocarray(entries, n + 1, sizeof *entries);
        if (!entries)
            fail("%zu entries", n);
        entries[n].is_link = found->d_type == DT_LNK;
        snprintf(entries[n++].name, sizeof entries->name, "%.31s", found->d_name);
    }
    for (size_t i = n; i > 1; i--) {
        size_t j = random_number() % i;
        struct entry moved = entries[i - 1];
        entries[i - 1] = entries[j];
        entries[j] = moved;
    }
    *n_entries = n;
    return entries;
}

static void do_longlist(void)
{
    DIR *directory = open_directory();
    size_t n_entries, done = 0;
    uint64_t listed, started = now(CLOCK_MONOTONIC), took = 0;
    struct entry *entries = entries_of(directory, &n_entries);
    listed = now(CLOCK_MONOTONIC);
    while (done < n_entries && (done == 0 || listed + took - started < give_up)) {
        const struct entry *entry = &entries[done++];
        struct stat st;
        char target[256];
        if (fstatat(dirfd(directory), entry->name, &st, AT_SYMLINK_NOFOLLOW))
            fail("%s", entry->name);
        if (entry->is_link && readlinkat(dirfd(directory), entry->name, target, sizeof target) < 0)
            fail("%s", entry->name);
        took = now(CLOCK_MONOTONIC) - listed;
    }
    if (done < n_entries)
        reckoned += (uint64_t)((double)took / (double)done * (double)(n_entries - done));
    free(entries);
    closedir(directory);
}

static void do_load(void)
{
    (void)*(volatile uint32_t *)(memory + next_offset());
}

static void do_copy(void)
{
    memcpy(buffer, memory + next_offset(), length);
    __asm__ volatile("" : : "r"(buffer) : "memory");
}

static void do_store(void)
{
    memcpy(memory + next_offset(), buffer, length);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

static void do_run(void)
{
    pid_t pid;
    int status;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    errno = posix_spawnp(&pid, *arguments, &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (errno || waitpid(pid, &status, 0) != pid)
        fail("%s", *arguments);
    if (status) {
        errno = ECHILD;
        fail("%s: status %#x", *arguments, (unsigned)status);
    }
}

static const struct kind kinds[] = {
    {"read", prepare_read, do_read, 1, true},
    {"write", prepare_write, do_write, 1, true},
    {"open", prepare_buffer, do_open, 1, false},
    {"stat", prepare_nothing, do_stat, 1, false},
    {"list", prepare_nothing, do_list, 1, false},
    {"longlist", prepare_nothing, do_longlist, 1, false},
    {"load", prepare_mapping, do_load, 1000, true},
    {"copy", prepare_mapping, do_copy, 1, true},
    {"store", prepare_mapping, do_store, 1, true},
    {"run", prepare_nothing, do_run, 1, false},
};

const struct kind *kind_of(const char *name)
{
    for (size_t n = 0; name && n < sizeof kinds / sizeof *kinds; n++)
        if (strcmp(name, kinds[n].name) == 0)
            return &kinds[n];
    errno = EINVAL;
    fail("%s", name ? name : "what to do");
}
