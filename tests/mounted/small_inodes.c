/* A 32-bit program without large files, as old ones are: stat and readdir by i386's first system
 * calls, which give EOVERFLOW for an inode number of more than 32 bits (fs/stat.c, cp_compat_stat;
 * fs/readdir.c, compat_filldir).
 *
 * small_inodes PATH...: a path that ends with / is listed, a name a line; the others are looked at.
 * It ends with the error number of what fails first. Without a C library, which need not be there
 * in 32 bits.
 */

enum { EXIT = 1, READ_ONLY = 0, WRITE = 4, OPEN = 5, LSTAT = 107, GETDENTS = 141 };

struct entry {
	unsigned long inode, offset;
	unsigned short length;
	char name[];
};

static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

static long length_of(const char *text)
{
	long length = 0;

	while (text[length])
		length++;
	return length;
}

static long must(long result)
{
	if (result < 0)
		call(EXIT, -result, 0, 0);
	return result;
}

static void list(const char *path)
{
	static char buffer[1 << 15] __attribute__((aligned(8)));
	long directory = must(call(OPEN, (long)path, READ_ONLY, 0)), got;

	while ((got = must(call(GETDENTS, directory, (long)buffer, sizeof(buffer)))) > 0) {
		for (long at = 0; at < got;) {
			struct entry *entry = (struct entry *)(buffer + at);

			call(WRITE, 1, (long)entry->name, length_of(entry->name));
			call(WRITE, 1, (long)"\n", 1);
			at += entry->length;
		}
	}
}

__attribute__((used)) static void run(long *stack)
{
	static char about[64];

	for (long index = 1; index < stack[0]; index++) {
		const char *path = (const char *)stack[1 + index];

		if (path[length_of(path) - 1] == '/')
			list(path);
		else
			must(call(LSTAT, (long)path, (long)about, 0));
	}
	call(EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tpush %esp\n\tcall run\n");
