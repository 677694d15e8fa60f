/*
 * The fault guard: a fault during an access ends the access, and not the process.
 */
#ifndef BARFS_GUARD_H
#define BARFS_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "accesses.h"

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

#endif
