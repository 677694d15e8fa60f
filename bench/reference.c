/*
 * The measure for barfs: what a small, plain C daemon does with the same files. libfuse's low-level
 * interface, one thread, direct_io, memcpy. It learns the functions of DEVICES (a directory as
 * sysfs's bus/pci/devices) when it starts and never looks again; a BAR is mapped at its first open
 * and stays mapped. Names, depth of paths, attributes and how long the kernel may keep them are
 * those of barfs, so that both get the same requests. It answers a flush, as barfs does.
 *
 * usage: reference copy|map DEVICES [FUSE OPTIONS] MOUNTPOINT
 *
 * "copy" copies what is read out of the mapping before it answers, as a BAR demands: handed to
 * writev, the mapping of a device fails with EFAULT. "map" does without, which only plain files
 * allow.
 */
#define FUSE_USE_VERSION 34
#define _GNU_SOURCE
#include "functions.h"

#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { REGISTER_BLKSIZE = 4, MEMORY_BLKSIZE = 1 << 20 };

/* Inode numbers: these, or the function's index + 1 above one of the kinds. */
enum { PCI = 2, PHYS, LOG, STATUS, N_FIXED = 4 };
static const char *const fixed[N_FIXED] = {"pci", "phys", "log", "status"};
enum { KIND_BITS = 4, FUNCTION = 0, LINK = 1, BAR0 = 2 };

static bool copying;

static fuse_ino_t inode_of(const struct function *function, int kind)
{
    return (fuse_ino_t)(function - functions + 1) << KIND_BITS | (fuse_ino_t)kind;
}

static struct function *function_of(fuse_ino_t inode)
{
    return &functions[(inode >> KIND_BITS) - 1];
}

static int kind_of(fuse_ino_t inode)
{
    return (int)(inode & ((1 << KIND_BITS) - 1));
}

static struct bar *bar_of(fuse_ino_t inode)
{
    return &function_of(inode)->bars[kind_of(inode) - BAR0];
}

static bool is_fixed(fuse_ino_t inode)
{
    return inode <= STATUS;
}

/* How long the kernel may keep a name, and attributes, in seconds: as barfs has it. */
static double timeout_of(fuse_ino_t inode)
{
    return inode <= PHYS || !is_fixed(inode) ? 1 : 0;
}

static double attributes_timeout_of(fuse_ino_t inode)
{
    if (is_fixed(inode))
        return inode == STATUS ? 1e-6 : timeout_of(inode);
    return kind_of(inode) >= BAR0 ? 1e-6 : 0;
}

static void describe(fuse_ino_t inode, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = inode;
    st->st_nlink = 1;
    st->st_blksize = 4096;
    if (inode == LOG || inode == STATUS) {
        st->st_mode = S_IFREG | 0400;
    } else if (is_fixed(inode) || kind_of(inode) == FUNCTION) {
        st->st_mode = S_IFDIR | 0555;
        st->st_nlink = 2;
    } else if (kind_of(inode) == LINK) {
        st->st_mode = S_IFLNK | 0777;
        st->st_size = (off_t)strlen(function_of(inode)->target);
    } else {
        const struct bar *bar = bar_of(inode);
        st->st_mode = S_IFREG | 0600;
        st->st_size = (off_t)bar->size;
        st->st_blocks = (st->st_size + 511) / 512;
        st->st_blksize = bar->prefetchable ? MEMORY_BLKSIZE : REGISTER_BLKSIZE;
    }
}

/* The inode number of a name in a directory, 0 if there is none. */
static fuse_ino_t find(fuse_ino_t parent, const char *name)
{
    struct function *function;
    int index;
    if (parent == FUSE_ROOT_ID) {
        for (int n = 0; n < N_FIXED; n++)
            if (strcmp(name, fixed[n]) == 0)
                return (fuse_ino_t)(PCI + n);
        function = find_link(name);
        return function ? inode_of(function, LINK) : 0;
    }
    if (parent == PCI) {
        function = find_address(name);
        return function ? inode_of(function, FUNCTION) : 0;
    }
    if (is_fixed(parent) || kind_of(parent) != FUNCTION || sscanf(name, "bar%1d", &index) != 1)
        return 0;
    if (index < 0 || index >= N_BARS || function_of(parent)->bars[index].size == 0)
        return 0;
    return inode_of(function_of(parent), BAR0 + index);
}

static void on_init(void *data, struct fuse_conn_info *connection)
{
    (void)data;
    /* As pyfuse3: every listing comes with attributes. */
    connection->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    fuse_ino_t inode = find(parent, name);
    if (inode == 0) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    struct fuse_entry_param entry = {.ino = inode,
                                     .attr_timeout = attributes_timeout_of(inode),
                                     .entry_timeout = timeout_of(inode)};
    describe(inode, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void on_getattr(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info)
{
    struct stat st;
    (void)info;
    describe(inode, &st);
    fuse_reply_attr(req, &st, attributes_timeout_of(inode));
}

static void on_readlink(fuse_req_t req, fuse_ino_t inode)
{
    fuse_reply_readlink(req, function_of(inode)->target);
}

/* The root's entries by their place: the fixed ones, then a link for each function. */
static const char *root_entry(size_t place, fuse_ino_t *inode)
{
    if (place < N_FIXED) {
        *inode = PCI + place;
        return fixed[place];
    }
    struct function *function = &functions[place - N_FIXED];
    *inode = inode_of(function, LINK);
    return function->link;
}

static void on_readdirplus(fuse_req_t req, fuse_ino_t directory, size_t length, off_t offset,
                           struct fuse_file_info *info)
{
    (void)info;
    if (directory != FUSE_ROOT_ID) {
        fuse_reply_err(req, EPERM); /* not measured */
        return;
    }
    char *buffer = malloc(length);
    size_t used = 0;
    for (size_t place = (size_t)offset; buffer && place < n_functions + N_FIXED; place++) {
        fuse_ino_t inode;
        const char *name = root_entry(place, &inode);
        struct fuse_entry_param entry = {.ino = inode,
                                         .attr_timeout = attributes_timeout_of(inode),
                                         .entry_timeout = timeout_of(inode)};
        describe(inode, &entry.attr);
        size_t more = fuse_add_direntry_plus(req, buffer + used, length - used, name, &entry,
                                             (off_t)place + 1);
        if (more > length - used)
            break;
        used += more;
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static void on_open(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info)
{
    int failed = 0;
    if (is_fixed(inode) || kind_of(inode) < BAR0)
        failed = EPERM;
    else if (!bar_of(inode)->memory)
        failed = map_bar(function_of(inode), kind_of(inode) - BAR0);
    if (failed) {
        fuse_reply_err(req, failed);
        return;
    }
    info->direct_io = 1;
    fuse_reply_open(req, info);
}

static void on_read(fuse_req_t req, fuse_ino_t inode, size_t length, off_t offset,
                    struct fuse_file_info *info)
{
    static char *buffer;
    static size_t capacity;
    const struct bar *bar = bar_of(inode);
    (void)info;
    if ((size_t)offset >= bar->size)
        length = 0;
    else if (length > bar->size - (size_t)offset)
        length = bar->size - (size_t)offset;
    if (!copying) {
        fuse_reply_buf(req, bar->memory + offset, length);
        return;
    }
    if (length > capacity) {
        free(buffer);
        buffer = malloc(length);
        capacity = buffer ? length : 0;
        if (!buffer) {
            fuse_reply_err(req, ENOMEM);
            return;
        }
    }
    memcpy(buffer, bar->memory + offset, length);
    fuse_reply_buf(req, buffer, length);
}

static void on_write(fuse_req_t req, fuse_ino_t inode, const char *data, size_t length,
                     off_t offset, struct fuse_file_info *info)
{
    const struct bar *bar = bar_of(inode);
    (void)info;
    if ((size_t)offset >= bar->size) {
        fuse_reply_err(req, ENOSPC);
        return;
    }
    if (length > bar->size - (size_t)offset)
        length = bar->size - (size_t)offset;
    memcpy(bar->memory + offset, data, length);
    fuse_reply_write(req, length);
}

static void on_flush(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info)
{
    (void)inode;
    (void)info;
    fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .init = on_init,
    .lookup = on_lookup,
    .getattr = on_getattr,
    .readlink = on_readlink,
    .readdirplus = on_readdirplus,
    .open = on_open,
    .read = on_read,
    .write = on_write,
    .flush = on_flush,
};

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: reference copy|map DEVICES [FUSE OPTIONS] MOUNTPOINT\n");
        return 2;
    }
    copying = strcmp(argv[1], "copy") == 0;
    if (!learn_functions(argv[2]))
        return 1;
    argv[2] = argv[0];
    struct fuse_args args = FUSE_ARGS_INIT(argc - 2, argv + 2);
    struct fuse_cmdline_opts options;
    if (fuse_parse_cmdline(&args, &options))
        return 1;
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session || fuse_set_signal_handlers(session)
        || fuse_session_mount(session, options.mountpoint)
        || fuse_daemonize(options.foreground))
        return 1;
    int failed = fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return failed != 0;
}
