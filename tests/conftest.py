"""What holds for every test: the thread settings of the product, set before torch is imported."""

from omni import threads

threads.set_environment()
