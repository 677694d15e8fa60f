/*
 * Loads and stores of one width over a mapping, and copies of it. These alone touch mappings.
 */
#ifndef BARFS_ACCESSES_H
#define BARFS_ACCESSES_H

#ifdef __SSE2__
#include <cpuid.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The widest access that this machine makes in one go: 8 bytes on a 32-bit machine would be two. */
#define MAX_WIDTH ((ptrdiff_t)sizeof(void *))

/* One piece of work on mapped memory: `at` is inside the mapping, `data` is ordinary memory. */
struct job {
    volatile unsigned char *at;
    unsigned char *data;
    size_t length; /* bytes */
    size_t width;  /* of each access; in a copy, of the widest ones */
};

typedef void operation(const struct job *);

/*
 * In a virtual machine a mapping may be of a device that is emulated. Each access then traps, and
 * the hypervisor has to find out what it was; one that can't ends the virtual machine. So a
 * mapping is touched only by instructions that hypervisors know. A test disassembles what
 * compilers make of it (tests/unit/access/test_instructions.py).
 *
 * arm64: a trap says what the access was if it was a load or store of one general register, and
 * nothing if it was with write-back, of a pair, SIMD or exclusive (Arm ARM, ESR_ELx, ISS encoding
 * for a Data Abort, ISV). KVM then gives up (Linux 6.12, arch/arm64/kvm/mmio.c, io_mem_abort).
 * Compilers make a write-back of `at++`, volatile or not. Hence assembly; the constraint Q is an
 * address in one register and nothing else.
 *
 * x86: a hypervisor decodes the instruction. The emulators that were looked at all know the moves
 * between memory and a general register, which is what compilers make of a volatile access. They
 * differ in the moves of SSE, of 16 bytes. KVM knows them (Linux 6.12, arch/x86/kvm/emulate.c,
 * twobyte_table), Xen does (xen/arch/x86/x86_emulate/x86_emulate.c), and OpenVMM
 * (vm/x86/x86emu/src/emulator.rs, emulate). QEMU with hvf or mshv does not
 * (target/i386/emulate/x86_decode.c, _2op_inst), nor does Cloud Hypervisor with mshv
 * (hypervisor/src/arch/x86/emulator/mod.rs, get_handler), nor bhyve
 * (sys/amd64/vmm/vmm_instruction_emul.c, two_byte_opcodes). TCG runs every instruction. Hence
 * copy_width(): a guest makes no moves of SSE. Even KVM does not know those of AVX (emulate.c,
 * "vex-prefix instructions are not implemented"). A compiler that may use AVX (-march=native)
 * spells the moves of SSE so. Hence KNOWN_MOVES.
 */
#ifdef __aarch64__
#define LOAD(at, suffix, view, value)                                                             \
    __asm__ volatile("ldr" suffix " %" view "0, %1" : "=r"(value) : "Q"(*(at)))
#define STORE(at, suffix, view, value)                                                            \
    __asm__ volatile("str" suffix " %" view "1, %0" : "=Q"(*(at)) : "r"(value))
#else
#define LOAD(at, suffix, view, value) ((value) = *(at))
#define STORE(at, suffix, view, value) (*(at) = (value))
#endif

#ifdef __SSE2__
#define KNOWN_MOVES __attribute__((noinline, target("no-avx")))
typedef uint64_t uint128_t __attribute__((vector_size(16)));
#else
#define KNOWN_MOVES __attribute__((noinline))
#endif

/*
 * Ascending accesses of one width. These functions alone touch a mapping, and none is inlined, so
 * that the test knows where to look. memcpy here only moves between a register and ordinary memory
 * that need not be aligned. `suffix` and `view` are arm64's, of the instruction and the register.
 */
typedef void run(volatile unsigned char *at, unsigned char *data, size_t length);

#define DEFINE_RUNS(bits, suffix, view)                                                           \
    static KNOWN_MOVES void load_run##bits(volatile unsigned char *from, unsigned char *data,     \
                                           size_t length)                                         \
    {                                                                                             \
        const volatile uint##bits##_t *at = (const volatile uint##bits##_t *)from;                \
        for (size_t n = length / sizeof *at; n; n--, at++, data += sizeof *at) {                  \
            uint##bits##_t value;                                                                 \
            LOAD(at, suffix, view, value);                                                        \
            memcpy(data, &value, sizeof value);                                                   \
        }                                                                                         \
    }                                                                                             \
    static KNOWN_MOVES void store_run##bits(volatile unsigned char *to, unsigned char *data,      \
                                            size_t length)                                        \
    {                                                                                             \
        volatile uint##bits##_t *at = (volatile uint##bits##_t *)to;                              \
        for (size_t n = length / sizeof *at; n; n--, at++, data += sizeof *at) {                  \
            uint##bits##_t value;                                                                 \
            memcpy(&value, data, sizeof value);                                                   \
            STORE(at, suffix, view, value);                                                       \
        }                                                                                         \
    }

DEFINE_RUNS(8, "b", "w")
DEFINE_RUNS(16, "h", "w")
DEFINE_RUNS(32, "", "w")
DEFINE_RUNS(64, "", "x")

#ifdef __SSE2__
DEFINE_RUNS(128, , )
#endif

enum { WIDEST = 16 };

static run *const load_runs[WIDEST + 1] = {
    [1] = load_run8, [2] = load_run16, [4] = load_run32, [8] = load_run64,
#ifdef __SSE2__
    [16] = load_run128,
#endif
};
static run *const store_runs[WIDEST + 1] = {
    [1] = store_run8, [2] = store_run16, [4] = store_run32, [8] = store_run64,
#ifdef __SSE2__
    [16] = store_run128,
#endif
};

static void load_run(const struct job *job)
{
    load_runs[job->width](job->at, job->data, job->length);
}

static void store_run(const struct job *job)
{
    store_runs[job->width](job->at, job->data, job->length);
}

/*
 * For memory-like spans: aligned accesses of job->width, narrower natural ones at both ends, never a
 * byte outside. Not memcpy: above about 2 KiB that is `rep movsb`, which moves single bytes on
 * uncached memory (Intel SDM vol. 1, 7.3.9.3: fast strings need WB or WC memory), and it reads
 * overlapping heads and tails.
 */
static void copy(const struct job *job, run *const runs[])
{
    size_t done = 0;
    while (done < job->length) {
        size_t rest = job->length - done;
        size_t width = job->width;
        while (width > rest || (uintptr_t)(job->at + done) % width)
            width /= 2;
        size_t piece = width == job->width ? rest - rest % width : width;
        runs[width](job->at + done, job->data + done, piece);
        done += piece;
    }
}

static void copy_out(const struct job *job)
{
    copy(job, load_runs);
}

/*
 * Stores through a write-combining mapping may wait in the CPU's buffers for more: have them leave,
 * for a write is done when it returns (Intel SDM vol. 3, "Buffering of Write Combining Memory
 * Locations").
 */
static void drain_stores(void)
{
#if defined(__SSE__)
    __builtin_ia32_sfence();
#elif defined(__aarch64__)
    __asm__ volatile("dsb st" : : : "memory");
#else
    __sync_synchronize();
#endif
}

static void copy_in(const struct job *job)
{
    copy(job, store_runs);
    drain_stores();
}

/*
 * The widest access that a copy should make here, in bytes. On hardware that is the widest that SSE
 * has, as an uncached read is a round trip, whatever its width. In a guest it is that of a general
 * register, see above. CPUID.1:ECX[31] is 0 on hardware, and hypervisors set it
 * (Linux, X86_FEATURE_HYPERVISOR).
 */
static ptrdiff_t copy_width(void)
{
#ifdef __SSE2__
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && !(ecx >> 31))
        return sizeof(uint128_t);
#endif
    return MAX_WIDTH;
}

#endif
