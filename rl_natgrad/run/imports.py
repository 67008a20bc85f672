"""Importing much, quickly, once."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def for_good() -> Iterator[None]:
    """Around imports that stay until the process ends: looking for garbage passes over them, now and then.

    Of 1.6 s that torch and the rest take, 0.25 are such looking, and so are 0.3 of the interpreter's end.
    """
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():  # once: what is garbage by the second time should not stay
            gc.freeze()
    finally:
        gc.enable()
