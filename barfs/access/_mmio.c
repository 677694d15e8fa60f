/*
 * Volatile loads and stores of 1, 2, 4 and 8 bytes over a mapped span, one at a time and in
 * runs, behind a guard that turns a fault into a Python exception. Nothing else: what to access,
 * in which width and in which order is decided in access.py.
 *
 * Why C: a Python slice of a mapping reads a 4-byte register twice (glibc's memcpy loads head and
 * tail), struct.pack_into writes it three times. A volatile access is made exactly as written,
 * once, in its own width (C11 5.1.2.3 p6; GCC manual, "When is a Volatile Object Accessed?").
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

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
    unsigned char *at;
    unsigned char *data;
    size_t length; /* bytes, a multiple of the width */
};

typedef void operation(const struct job *);

/* ---- accesses ---------------------------------------------------------------------------- */

/* memcpy here only moves between a register and ordinary memory that need not be aligned. */
#define DEFINE_WIDTH(bits)                                                                        \
    static void load_run##bits(const struct job *job)                                             \
    {                                                                                             \
        const volatile uint##bits##_t *at = (const volatile uint##bits##_t *)job->at;             \
        unsigned char *data = job->data;                                                          \
        for (size_t n = job->length / sizeof *at; n; n--, at++, data += sizeof *at) {             \
            uint##bits##_t value = *at;                                                           \
            memcpy(data, &value, sizeof value);                                                   \
        }                                                                                         \
    }                                                                                             \
    static void store_run##bits(const struct job *job)                                            \
    {                                                                                             \
        volatile uint##bits##_t *at = (volatile uint##bits##_t *)job->at;                         \
        const unsigned char *data = job->data;                                                    \
        for (size_t n = job->length / sizeof *at; n; n--, at++, data += sizeof *at) {             \
            uint##bits##_t value;                                                                 \
            memcpy(&value, data, sizeof value);                                                   \
            *at = value;                                                                          \
        }                                                                                         \
    }

DEFINE_WIDTH(8)
DEFINE_WIDTH(16)
DEFINE_WIDTH(32)
DEFINE_WIDTH(64)

static operation *const load_runs[] = {
    [1] = load_run8, [2] = load_run16, [4] = load_run32, [8] = load_run64};
static operation *const store_runs[] = {
    [1] = store_run8, [2] = store_run16, [4] = store_run32, [8] = store_run64};

/*
 * Copies for memory-like spans: 16 aligned bytes at a time, narrower natural pieces at both ends,
 * never a byte outside. Not memcpy: above about 2 KiB that is `rep movsb`, which moves single
 * bytes on uncached memory (Intel SDM vol. 1, 7.3.9.3: fast strings need WB or WC memory), and it
 * reads overlapping heads and tails. The volatile keeps compilers from turning the loop back into
 * memcpy. Not 32 bytes, which takes AVX: on ordinary memory that gains a twentieth, and where a BAR
 * is emulated KVM has to know the instruction (arch/x86/kvm/emulate.c: SSE's moves, and in most
 * kernels none of AVX), or the virtual machine ends.
 */
typedef uint64_t wide __attribute__((vector_size(16)));

static size_t natural_width(const unsigned char *at, size_t length)
{
    size_t width = (size_t)MAX_WIDTH;
    while (width > length || (uintptr_t)at % width)
        width /= 2;
    return width;
}

/* The pieces too small or too crooked for a wide access; returns the bytes they took. */
static size_t copy_narrow(const struct job *job, operation *const runs[], size_t done)
{
    struct job piece = {job->at + done, job->data + done, 0};
    piece.length = natural_width(piece.at, job->length - done);
    runs[piece.length](&piece);
    return piece.length;
}

#define WIDE_AT(job, done)                                                                        \
    ((uintptr_t)((job)->at + (done)) % sizeof(wide) == 0 && (job)->length - (done) >= sizeof(wide))

static void copy_out(const struct job *job)
{
    size_t done = 0;
    while (done < job->length) {
        if (!WIDE_AT(job, done)) {
            done += copy_narrow(job, load_runs, done);
            continue;
        }
        const volatile wide *at = (const volatile wide *)(job->at + done);
        size_t blocks = (job->length - done) / sizeof(wide), i = 0;
        for (; i + 4 <= blocks; i += 4) {
            wide block[4] = {at[i], at[i + 1], at[i + 2], at[i + 3]};
            memcpy(job->data + done + i * sizeof(wide), block, sizeof block);
        }
        for (; i < blocks; i++) {
            wide block = at[i];
            memcpy(job->data + done + i * sizeof(wide), &block, sizeof block);
        }
        done += blocks * sizeof(wide);
    }
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
    size_t done = 0;
    while (done < job->length) {
        if (!WIDE_AT(job, done)) {
            done += copy_narrow(job, store_runs, done);
            continue;
        }
        volatile wide *at = (volatile wide *)(job->at + done);
        size_t blocks = (job->length - done) / sizeof(wide), i = 0;
        for (; i < blocks; i++) {
            wide block;
            memcpy(&block, job->data + done + i * sizeof(wide), sizeof block);
            at[i] = block;
        }
        done += blocks * sizeof(wide);
    }
    drain_stores();
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

enum { SIGNALS = 2, HANDLERS = 8 };
static const int fault_signals[SIGNALS] = {SIGBUS, SIGSEGV};

/*
 * Who handled the signal before, oldest first. Others may install a handler after this module did
 * (faulthandler.enable() in a test runner) and call ours as their predecessor; `chained` walks
 * down so that neither of the two calls the other for ever.
 */
static struct sigaction before[SIGNALS][HANDLERS];
static int n_before[SIGNALS];
static _Thread_local int chained[SIGNALS];

static void chain(int which, int signum, siginfo_t *info, void *context)
{
    int next = n_before[which] - 1 - chained[which];
    struct sigaction other;
    memset(&other, 0, sizeof other);
    other.sa_handler = SIG_DFL;
    if (next >= 0)
        other = before[which][next];
    if (!(other.sa_flags & SA_SIGINFO)
        && (other.sa_handler == SIG_DFL || other.sa_handler == SIG_IGN)) {
        /* Coming back from here repeats a real fault, now with the default action. */
        other.sa_handler = SIG_DFL;
        sigaction(signum, &other, NULL);
        if (info->si_code <= 0)
            raise(signum);
        return;
    }
    chained[which]++;
    if (other.sa_flags & SA_SIGINFO)
        other.sa_sigaction(signum, info, context);
    else
        other.sa_handler(signum);
    chained[which]--;
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
    chain(signum == fault_signals[0] ? 0 : 1, signum, info, context);
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
        int n = n_before[which];
        if (n == 0 || before[which][n - 1].sa_sigaction != current.sa_sigaction) {
            if (n == HANDLERS)
                n--;
            before[which][n] = current;
            n_before[which] = n + 1;
        }
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

/* Does the work on the span's bytes from `offset`; -1 with an exception set if it can't. */
static int span_run(Span *self, operation *operation, Py_ssize_t offset, void *data,
                    Py_ssize_t length, int release_gil)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct job job = {self->base + offset, data, (size_t)length};
    struct guard guard;
    int result;

    guard.first = (unsigned char *)((uintptr_t)job.at & ~(page - 1));
    guard.last = (unsigned char *)(((uintptr_t)job.at + job.length + page - 1) & ~(page - 1));
    guard.fault = NULL;
    if (release_gil) {
        self->users++;
        PyThreadState *state = PyEval_SaveThread();
        result = run_guarded(&guard, operation, &job);
        PyEval_RestoreThread(state);
        if (--self->users == 0 && self->closed)
            span_unmap(self);
    } else {
        result = run_guarded(&guard, operation, &job);
    }
    if (result == 0)
        return 0;

    /* A fault that names only the page lies before the first byte of the work: say that byte. */
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
    if ((width != 1 && width != 2 && width != 4 && width != 8) || width > MAX_WIDTH) {
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

static int parse_sizes(const char *name, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t expect,
                       Py_ssize_t *first, Py_ssize_t *second)
{
    if (nargs != expect) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, expect, nargs);
        return -1;
    }
    *first = PyNumber_AsSsize_t(args[0], PyExc_IndexError);
    if (*first == -1 && PyErr_Occurred())
        return -1;
    if (!second)
        return 0;
    *second = PyNumber_AsSsize_t(args[1], PyExc_ValueError);
    return *second == -1 && PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(load_doc, "load(offset, width, /)\n--\n\n"
                       "One load of `width` bytes at `offset`, as an unsigned number.");

static PyObject *span_load(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, width;
    uint64_t value = 0;
    unsigned char *data = (unsigned char *)&value;
    if (parse_sizes("load", args, nargs, 2, &offset, &width)
        || span_check(self, offset, width, 0) || span_check_width(self, offset, width, width))
        return NULL;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    data += sizeof value - (size_t)width;
#endif
    if (span_run(self, load_runs[width], offset, data, width, 0))
        return NULL;
    return PyLong_FromUnsignedLongLong(value);
}

PyDoc_STRVAR(store_doc, "store(offset, width, value, /)\n--\n\n"
                        "One store of `value` in `width` bytes at `offset`.");

static PyObject *span_store(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, width;
    if (parse_sizes("store", args, nargs, 3, &offset, &width)
        || span_check(self, offset, width, 1) || span_check_width(self, offset, width, width))
        return NULL;
    uint64_t value = PyLong_AsUnsignedLongLong(args[2]);
    if (value == UINT64_MAX && PyErr_Occurred())
        return NULL;
    if (width < 8 && value >> (8 * width)) {
        PyErr_Format(PyExc_OverflowError, "the value does not fit into %zd bytes", width);
        return NULL;
    }
    unsigned char *data = (unsigned char *)&value;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    data += sizeof value - (size_t)width;
#endif
    if (span_run(self, store_runs[width], offset, data, width, 0))
        return NULL;
    Py_RETURN_NONE;
}

/* A run between the span and a buffer; runs == NULL: a copy, in any widths. */
static PyObject *span_transfer(Span *self, Py_ssize_t offset, Py_ssize_t width, PyObject *object,
                               int store, operation *const runs[], operation *copy)
{
    Py_buffer buffer;
    int failed;
    if (PyObject_GetBuffer(object, &buffer, store ? PyBUF_SIMPLE : PyBUF_WRITABLE))
        return NULL;
    failed = span_check(self, offset, buffer.len, store)
             || (runs && span_check_width(self, offset, width, buffer.len));
    if (!failed && buffer.len)
        failed = span_run(self, runs ? runs[width] : copy, offset, buffer.buf, buffer.len, 1);
    PyBuffer_Release(&buffer);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(load_run_doc, "load_run(offset, width, into, /)\n--\n\n"
                           "Fill the buffer `into` by ascending loads of `width` bytes from "
                           "`offset`.");

static PyObject *span_load_run(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, width;
    if (parse_sizes("load_run", args, nargs, 3, &offset, &width))
        return NULL;
    return span_transfer(self, offset, width, args[2], 0, load_runs, NULL);
}

PyDoc_STRVAR(store_run_doc, "store_run(offset, width, data, /)\n--\n\n"
                            "Write the buffer `data` by ascending stores of `width` bytes from "
                            "`offset`.");

static PyObject *span_store_run(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset, width;
    if (parse_sizes("store_run", args, nargs, 3, &offset, &width))
        return NULL;
    return span_transfer(self, offset, width, args[2], 1, store_runs, NULL);
}

PyDoc_STRVAR(copy_out_doc, "copy_out(offset, into, /)\n--\n\n"
                           "Fill the buffer `into` from `offset`, in wide aligned loads.");

static PyObject *span_copy_out(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset;
    if (parse_sizes("copy_out", args, nargs, 2, &offset, NULL))
        return NULL;
    return span_transfer(self, offset, 0, args[1], 0, NULL, copy_out);
}

PyDoc_STRVAR(copy_in_doc, "copy_in(offset, data, /)\n--\n\n"
                          "Write the buffer `data` at `offset`, in wide aligned stores.");

static PyObject *span_copy_in(Span *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t offset;
    if (parse_sizes("copy_in", args, nargs, 2, &offset, NULL))
        return NULL;
    return span_transfer(self, offset, 0, args[1], 1, NULL, copy_in);
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
    METHOD(load),
    METHOD(store),
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
        || PyModule_AddIntConstant(module, "MAX_WIDTH", MAX_WIDTH)) {
        Py_XDECREF(span);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(span);
    return module;
}
