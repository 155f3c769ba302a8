"""Has sharing.py compiled as it is: its calls are cheaper then."""

cdef _make_room(driver, Py_ssize_t size_bytes)
