"""The C declarations of what libc.py calls, and how libc_calls.py is made of them.

Parsing C takes 35 ms, more than anything else when a machine starts, so it is done beforehand:
`python -m minivmm.memory.libc_declared` after every change here. A test sees to it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import cffi

DECLARED = """
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);
    int munmap(void *addr, size_t length);
    int mprotect(void *addr, size_t length, int prot);
    int madvise(void *addr, size_t length, int advice);
    void *memset(void *addr, int value, size_t length);
    int fallocate(int fd, int mode, int64_t offset, int64_t length);
    int memcmp(const void *one, const void *other, size_t length);
    int ioctl(int fd, unsigned long request, void *argument);

    struct page_region { uint64_t start, end, categories; };
    struct pm_scan_arg {
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
        uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
    };
"""

CALLS = Path(__file__).with_name("libc_calls.py")
"""What is made: the declarations as cffi's own tables."""

_HEAD = '"""libc_declared.py as cffi\'s tables: made by that module, not by hand."""\n\n'


def made() -> str:
    """The text of CALLS, by the cffi that is installed."""
    ffi = cffi.FFI()
    ffi.cdef(DECLARED)
    ffi.set_source("minivmm.memory.libc_calls", None)
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        target = Path(directory, "calls.py")
        ffi.emit_python_code(str(target))
        return _HEAD + target.read_text()


if __name__ == "__main__":
    CALLS.write_text(made())
