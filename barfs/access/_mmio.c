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

#include <sys/mman.h>
#include <unistd.h>

#include "accesses.h"
#include "guard.h"

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
