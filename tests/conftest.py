"""Shared by all tests: what a shell in the background does to signals is undone."""

import signal

# A shell without job control starts what it puts into the background with SIGINT ignored, and so are its children:
# tests of Ctrl-C would then interrupt nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
