"""What holds for every test, set before torch and triton are imported: threads, and no card."""

import os

from omni import threads

threads.set_environment()
# Triton decides when it is first imported, by whichever test is collected first.
os.environ["TRITON_INTERPRET"] = "1"
