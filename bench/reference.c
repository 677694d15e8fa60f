/*
 * The measure for barfs: what a small, plain C daemon does with the same files. libfuse's low-level
 * interface, one thread, direct_io, one mapped backing file, memcpy. It has a directory of entries to
 * list, each a link to nothing, and one file, `bar`.
 *
 * usage: reference BACKING ENTRIES [FUSE OPTIONS] MOUNTPOINT
 */
#define FUSE_USE_VERSION 34
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_INODE = 2, FIRST_ENTRY = 16 };

static char *memory;
static size_t size;
static unsigned entries;

static void attributes(fuse_ino_t inode, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = inode;
    st->st_nlink = 1;
    if (inode == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | 0555;
    } else if (inode == FILE_INODE) {
        st->st_mode = S_IFREG | 0600;
        st->st_size = (off_t)size;
    } else {
        st->st_mode = S_IFLNK | 0777;
        st->st_size = 1;
    }
}

static void name_of(unsigned entry, char name[16])
{
    snprintf(name, 16, "e%06u", entry);
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.attr_timeout = 0, .entry_timeout = 0};
    (void)parent;
    if (strcmp(name, "bar") == 0)
        entry.ino = FILE_INODE;
    else if (name[0] == 'e')
        entry.ino = FIRST_ENTRY + strtoul(name + 1, NULL, 10);
    else {
        fuse_reply_err(req, ENOENT);
        return;
    }
    attributes(entry.ino, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void on_getattr(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info)
{
    struct stat st;
    (void)info;
    attributes(inode, &st);
    fuse_reply_attr(req, &st, 0);
}

static void on_readlink(fuse_req_t req, fuse_ino_t inode)
{
    (void)inode;
    fuse_reply_readlink(req, "x");
}

static void on_readdirplus(fuse_req_t req, fuse_ino_t inode, size_t length, off_t offset,
                           struct fuse_file_info *info)
{
    char *buffer = malloc(length);
    size_t used = 0;
    (void)inode;
    (void)info;
    for (unsigned n = (unsigned)offset; buffer && n < entries + 1; n++) {
        struct fuse_entry_param entry = {.ino = n ? FIRST_ENTRY + n : FILE_INODE};
        char name[16] = "bar";
        if (n)
            name_of(n, name);
        attributes(entry.ino, &entry.attr);
        size_t more =
            fuse_add_direntry_plus(req, buffer + used, length - used, name, &entry, n + 1);
        if (more > length - used)
            break;
        used += more;
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static void on_open(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info)
{
    (void)inode;
    info->direct_io = 1;
    fuse_reply_open(req, info);
}

static void on_read(fuse_req_t req, fuse_ino_t inode, size_t length, off_t offset,
                    struct fuse_file_info *info)
{
    (void)inode;
    (void)info;
    if ((size_t)offset >= size)
        length = 0;
    else if (length > size - (size_t)offset)
        length = size - (size_t)offset;
    fuse_reply_buf(req, memory + offset, length);
}

static void on_write(fuse_req_t req, fuse_ino_t inode, const char *data, size_t length, off_t offset,
                     struct fuse_file_info *info)
{
    (void)inode;
    (void)info;
    if ((size_t)offset >= size) {
        fuse_reply_err(req, ENOSPC);
        return;
    }
    if (length > size - (size_t)offset)
        length = size - (size_t)offset;
    memcpy(memory + offset, data, length);
    fuse_reply_write(req, length);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = on_lookup,
    .getattr = on_getattr,
    .readlink = on_readlink,
    .readdirplus = on_readdirplus,
    .open = on_open,
    .read = on_read,
    .write = on_write,
};

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int fd = open(argv[1], O_RDWR);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return 1;
    size = (size_t)st.st_size;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    entries = (unsigned)strtoul(argv[2], NULL, 10);
    argv[2] = argv[0];
    struct fuse_args args = FUSE_ARGS_INIT(argc - 2, argv + 2);
    struct fuse_cmdline_opts options;
    if (memory == MAP_FAILED || fuse_parse_cmdline(&args, &options))
        return 1;
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session || fuse_set_signal_handlers(session)
        || fuse_session_mount(session, options.mountpoint))
        return 1;
    int failed = fuse_session_loop(session);
    fuse_session_unmount(session);
    return failed != 0;
}
