"""The types with which receiver.py is compiled."""


cdef class Receiver:
    cpdef receive(self, received, long long now_ns)


cdef class CallingReceiver(Receiver):
    cdef object _function

    cpdef receive(self, received, long long now_ns)
