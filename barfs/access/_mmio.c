/*
 * Loads and stores of one width over a mapped span, and copies, behind a guard that turns a fault
 * into a Python exception. Nothing else: what to access, in which width and in which order is
 * decided in contract.py.
 *
 * Why C: a Python slice of a mapping reads a 4-byte register twice (glibc's memcpy loads head and
 * tail), struct.pack_into writes it three times. A volatile access is made exactly as written,
 * once, in its own width (C11 5.1.2.3 p6; GCC manual, "When is a Volatile Object Accessed?").
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#ifdef __SSE2__
#include <cpuid.h>
#endif
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The widest access that this machine makes in one go: 8 bytes on a 32-bit machine would be two. */
#define MAX_WIDTH ((Py_ssize_t)sizeof(void *))

/* One piece of work on mapped memory: `at` is inside the mapping, `data` is ordinary memory. */
struct job {
    volatile unsigned char *at;
    unsigned char *data;
    size_t length; /* bytes */
    size_t width;  /* of each access; in a copy, of the widest ones */
};

typedef void operation(const struct job *);

/* ---- accesses ---------------------------------------------------------------------------- */

/*
 * In a virtual machine a mapping may be of a device that is emulated. Each access then traps, and
 * the hypervisor has to find out what it was; one that can't ends the virtual machine. So a
 * mapping is touched only by instructions that hypervisors know. A test disassembles what
 * compilers make of this file (tests/unit/access/test_instructions.py).
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
static Py_ssize_t copy_width(void)
{
#ifdef __SSE2__
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && !(ecx >> 31))
        return sizeof(uint128_t);
#endif
    return MAX_WIDTH;
}

/* ---- the fault guard --------------------------------------------------------------------- */

/*
 * A revoked mapping, a truncated file or a machine check answers an access with SIGBUS (or
 * SIGSEGV). While a thread is inside an access, `guarded` points to where it wants to go back to.
 * A fault anywhere else is handed to whoever handled the signal before.
 */
struct guard {
    sigjmp_buf back;
    const unsigned char *first, *last; /* whole pages: some faults name only the page */
    const unsigned char *fault;
    int signum, code; /* of the fault, as in its siginfo */
};

/* volatile: set before the first access and cleared after the last, in that order. */
static _Thread_local struct guard *volatile guarded;

enum { SIGNALS = 2 };
static const int fault_signals[SIGNALS] = {SIGBUS, SIGSEGV};

/*
 * Who handled the signal when ours was installed. Others may install a handler after that
 * (faulthandler.enable() in a test runner) and call ours as their predecessor. When they are
 * found and become ours, neither may call the other for ever: `handing_on` sees that.
 */
static struct sigaction before[SIGNALS];
static _Thread_local int handing_on[SIGNALS];

static void hand_on(int which, int signum, siginfo_t *info, void *context)
{
    struct sigaction other = before[which];
    int has_handler = other.sa_flags & SA_SIGINFO
                      || (other.sa_handler != SIG_DFL && other.sa_handler != SIG_IGN);
    if (handing_on[which] || !has_handler) {
        /* Coming back from here repeats a real fault, now with the default action. */
        memset(&other, 0, sizeof other);
        other.sa_handler = SIG_DFL;
        sigaction(signum, &other, NULL);
        if (info->si_code <= 0)
            raise(signum);
        return;
    }
    handing_on[which] = 1;
    if (other.sa_flags & SA_SIGINFO)
        other.sa_sigaction(signum, info, context);
    else
        other.sa_handler(signum);
    handing_on[which] = 0;
}

static void on_fault(int signum, siginfo_t *info, void *context)
{
    struct guard *guard = guarded;
    const unsigned char *address = info->si_addr;
    /* si_code > 0: raised by the kernel for an access, not sent by kill() or raise(). */
    if (guard && info->si_code > 0 && address >= guard->first && address < guard->last) {
        guard->fault = address;
        guard->signum = signum;
        guard->code = info->si_code;
        siglongjmp(guard->back, 1);
    }
    hand_on(signum == fault_signals[0] ? 0 : 1, signum, info, context);
}

/*
 * See to it that our handler is the current one. Needs the GIL. For each span anew, as others may
 * have installed theirs; not for each access, as asking takes longer than the access does.
 */
static int arm(void)
{
    for (int which = 0; which < SIGNALS; which++) {
        struct sigaction current, ours;
        if (sigaction(fault_signals[which], NULL, &current))
            return -1;
        if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_fault)
            continue;
        before[which] = current;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = on_fault;
        /* SA_NODEFER: leaving by siglongjmp must not leave the signal blocked. */
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&ours.sa_mask);
        if (sigaction(fault_signals[which], &ours, NULL))
            return -1;
    }
    return 0;
}

/* Runs `operation`; 0, or -1 with the fault in the guard. */
static int run_guarded(struct guard *guard, operation *operation, const struct job *job)
{
    if (sigsetjmp(guard->back, 0)) {
        guarded = NULL;
        return -1;
    }
    guarded = guard;
    operation(job);
    guarded = NULL;
    return 0;
}

/* ---- Span -------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    unsigned char *map; /* page-aligned start of the mapping, NULL once unmapped */
    size_t map_length;
    unsigned char *base; /* the first byte of the span, inside the mapping */
    Py_ssize_t length;
    int writable;
    int closed;
    int users; /* runs under way without the GIL; the last one unmaps a closed span */
} Span;

static PyObject *Fault; /* _mmio.Fault; one for all interpreters, as the signal handlers are */

static void span_unmap(Span *self)
{
    if (self->map) {
        munmap(self->map, self->map_length);
        self->map = NULL;
    }
}

/* Does the work on the span; -1 with an exception set if it can't. Other threads run meanwhile. */
static int span_run(Span *self, operation *operation, const struct job *job)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct guard guard;
    int result;

    guard.first = (unsigned char *)((uintptr_t)job->at & ~(page - 1));
    guard.last = (unsigned char *)(((uintptr_t)job->at + job->length + page - 1) & ~(page - 1));
    guard.fault = NULL;
    self->users++;
    PyThreadState *state = PyEval_SaveThread();
    result = run_guarded(&guard, operation, job);
    PyEval_RestoreThread(state);
    if (--self->users == 0 && self->closed)
        span_unmap(self);
    if (result == 0)
        return 0;

    /* A fault that names only the page lies before the first byte of the work: say that byte. */
    Py_ssize_t offset = job->at - self->base;
    Py_ssize_t at = guard.fault - self->base;
    PyObject *arguments =
        Py_BuildValue("nii", at < offset ? offset : at, guard.signum, guard.code);
    if (arguments) {
        PyErr_SetObject(Fault, arguments);
        Py_DECREF(arguments);
    }
    return -1;
}

static int span_check(Span *self, Py_ssize_t offset, Py_ssize_t length, int store)
{
    if (self->closed) {
        PyErr_SetString(PyExc_ValueError, "the span is closed");
        return -1;
    }
    if (store && !self->writable) {
        PyErr_SetString(PyExc_TypeError, "the span is mapped read-only");
        return -1;
    }
    if (offset < 0 || length < 0 || length > self->length || offset > self->length - length) {
        PyErr_Format(PyExc_IndexError, "%zd bytes at %zd are outside a span of %zd bytes", length,
                     offset, self->length);
        return -1;
    }
    return 0;
}

static int span_check_width(Span *self, Py_ssize_t offset, Py_ssize_t width, Py_ssize_t length)
{
    if (width < 1 || width > MAX_WIDTH || !load_runs[width]) {
        PyErr_Format(PyExc_ValueError, "no access is %zd bytes wide", width);
        return -1;
    }
    if ((uintptr_t)(self->base + offset) % (size_t)width || length % width) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd do not divide into aligned accesses of %zd",
                     length, offset, width);
        return -1;
    }
    return 0;
}

static int check_widest(Py_ssize_t width)
{
    if (width >= 1 && width <= WIDEST && load_runs[width])
        return 0;
    PyErr_Format(PyExc_ValueError, "no copy is made in accesses of %zd bytes", width);
    return -1;
}

/* What all transfers take: an offset, a width, a buffer. */
struct request {
    Py_ssize_t offset, width;
    Py_buffer buffer;
};

static int parse_request(PyObject *const *args, Py_ssize_t nargs, int store,
                         struct request *request)
{
    if (nargs != 3) {
        PyErr_Format(PyExc_TypeError, "an offset, a width and a buffer, not %zd arguments", nargs);
        return -1;
    }
    request->offset = PyNumber_AsSsize_t(args[0], PyExc_IndexError);
    if (request->offset == -1 && PyErr_Occurred())
        return -1;
    request->width = PyNumber_AsSsize_t(args[1], PyExc_ValueError);
    if (request->width == -1 && PyErr_Occurred())
        return -1;
    return PyObject_GetBuffer(args[2], &request->buffer, store ? PyBUF_SIMPLE : PyBUF_WRITABLE);
}

static int span_transfer(Span *self, operation *operation, const struct request *request)
{
    struct job job = {self->base + request->offset, request->buffer.buf,
                      (size_t)request->buffer.len, (size_t)request->width};
    return job.length ? span_run(self, operation, &job) : 0;
}

static PyObject *transfer_run(Span *self, PyObject *const *args, Py_ssize_t nargs, int store)
{
    struct request request;
    if (parse_request(args, nargs, store, &request))
        return NULL;
    int failed = span_check(self, request.offset, request.buffer.len, store)
                 || span_check_width(self, request.offset, request.width, request.buffer.len)
                 || span_transfer(self, store ? store_run : load_run, &request);
    PyBuffer_Release(&request.buffer);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *transfer_copy(Span *self, PyObject *const *args, Py_ssize_t nargs, int store)
{
    struct request request;
    if (parse_request(args, nargs, store, &request))
        return NULL;
    int failed = span_check(self, request.offset, request.buffer.len, store)
                 || check_widest(request.width)
                 || span_transfer(self, store ? copy_in : copy_out, &request);
    PyBuffer_Release(&request.buffer);
    return failed ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(load_run_doc, "load_run(offset, width, into, /)\n--\n\n"
                           "Fill the buffer `into` by ascending loads of `width` bytes from "
                           "`offset`.");

static PyObject *span_load_run(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer_run(self, args, nargs, 0);
}

PyDoc_STRVAR(store_run_doc, "store_run(offset, width, data, /)\n--\n\n"
                            "Write the buffer `data` by ascending stores of `width` bytes from "
                            "`offset`.");

static PyObject *span_store_run(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer_run(self, args, nargs, 1);
}

PyDoc_STRVAR(copy_out_doc, "copy_out(offset, width, into, /)\n--\n\n"
                           "Fill the buffer `into` from `offset`, in aligned loads of `width` bytes "
                           "and narrower ones at the ends.");

static PyObject *span_copy_out(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer_copy(self, args, nargs, 0);
}

PyDoc_STRVAR(copy_in_doc, "copy_in(offset, width, data, /)\n--\n\n"
                          "Write the buffer `data` at `offset`, in aligned stores of `width` bytes "
                          "and narrower ones at the ends.");

static PyObject *span_copy_in(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer_copy(self, args, nargs, 1);
}

PyDoc_STRVAR(close_doc, "close()\n--\n\n"
                        "Unmap; a run under way in another thread is finished first. Any access "
                        "after this is a ValueError.");

static PyObject *span_close(Span *self, PyObject *Py_UNUSED(ignored))
{
    self->closed = 1;
    if (self->users == 0)
        span_unmap(self);
    Py_RETURN_NONE;
}

static PyObject *span_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "offset", "length", "writable", NULL};
    int fd, writable;
    long long offset;
    Py_ssize_t length;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iLnp:Span", names, &fd, &offset, &length,
                                     &writable))
        return NULL;
    long long skip = offset % sysconf(_SC_PAGESIZE);
    if (offset < 0 || length <= 0 || length > PY_SSIZE_T_MAX - skip) {
        PyErr_Format(PyExc_ValueError, "cannot map %zd bytes at %lld", length, offset);
        return NULL;
    }
    if (arm())
        return PyErr_SetFromErrno(PyExc_OSError);
    Span *self = (Span *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->map_length = (size_t)length + (size_t)skip;
    void *map = mmap(NULL, self->map_length, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                     MAP_SHARED, fd, (off_t)(offset - skip));
    if (map == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->map = map;
    self->base = self->map + skip;
    self->length = length;
    self->writable = writable;
    return (PyObject *)self;
}

static void span_dealloc(Span *self)
{
    PyTypeObject *type = Py_TYPE(self);
    span_unmap(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static Py_ssize_t span_length(Span *self)
{
    return self->length;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))span_##name, METH_FASTCALL, name##_doc}

static PyMethodDef span_methods[] = {
    METHOD(load_run),
    METHOD(store_run),
    METHOD(copy_out),
    METHOD(copy_in),
    {"close", (PyCFunction)span_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(span_doc, "Span(fd, offset, length, writable)\n--\n\n"
                       "`length` bytes of a file from `offset`, which need not be page-aligned, "
                       "mapped shared, with the guard against faults in force. "
                       "OSError as mmap(2).");

static PyType_Slot span_slots[] = {
    {Py_tp_doc, (void *)span_doc}, {Py_tp_new, span_new},       {Py_tp_dealloc, span_dealloc},
    {Py_tp_methods, span_methods}, {Py_sq_length, span_length}, {0, NULL},
};

static PyType_Spec span_spec = {
    .name = "barfs._mmio.Span",
    .basicsize = sizeof(Span),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = span_slots,
};

/* ---- the module -------------------------------------------------------------------------- */

PyDoc_STRVAR(fault_doc, "An access faulted; args are its offset in the span, the signal and its "
                        "si_code. Accesses below the offset were made.");

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_mmio",
    .m_doc = "Exact accesses to mapped memory.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__mmio(void)
{
    PyObject *module = PyModule_Create(&module_def);
    if (!module)
        return NULL;
    PyObject *span = PyType_FromModuleAndSpec(module, &span_spec, NULL);
    Fault = PyErr_NewExceptionWithDoc("barfs._mmio.Fault", fault_doc, NULL, NULL);
    if (!span || !Fault || PyModule_AddObjectRef(module, "Span", span)
        || PyModule_AddObjectRef(module, "Fault", Fault)
        || PyModule_AddIntConstant(module, "MAX_WIDTH", MAX_WIDTH)
        || PyModule_AddIntConstant(module, "COPY_WIDTH", copy_width())) {
        Py_XDECREF(span);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(span);
    return module;
}
