"""What holds for every test, set before torch and triton are imported: threads, and no card."""

import os
import signal

from omni import threads

threads.set_environment()
# Triton decides when it is first imported, by whichever test is collected first.
os.environ["TRITON_INTERPRET"] = "1"
# What a shell starts in the background ignores Ctrl-C, and so would every program under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
