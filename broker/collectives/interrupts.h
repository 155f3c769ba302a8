/* Python's signals, for an operation that is carried out on one of Python's threads without its lock. */
#ifndef TENSORBUS_INTERRUPTS_H
#define TENSORBUS_INTERRUPTS_H

#include <Python.h>

/* Runs the handlers of signals that have come; not 0 when one has raised, and then its exception stays set. */
static inline int tb_interrupted(void)
{
    PyGILState_STATE held = PyGILState_Ensure();
    int raised = PyErr_CheckSignals();
    PyGILState_Release(held);
    return raised;
}

/* -1 when an exception is set. */
static inline int tb_raise(void)
{
    return PyErr_Occurred() ? -1 : 0;
}

#endif
