"""Every error that Omni raises on purpose.

    OmniError
    ├── ConfigError          a setting has a wrong name, type or value (also a ValueError)
    ├── InputError           data from a user or client is not usable (also a ValueError)
    ├── ModelError           a weight file or model folder is missing, corrupt or of an unknown kind
    │   └── FetchError       weights could not be brought into the model store
    ├── CapacityError        a stated limit is reached; the message names the limit
    │   └── ContextLengthError   more tokens than the model's context holds
    └── CancelledError       work was stopped on request; an expected path, never logged as a fault

A message gives the value, what was expected and what to do. Users' mistakes are these; our own
mistakes are ``assert``. ``code`` is what the protocols that Omni speaks call such an error.
"""


class OmniError(Exception):
    """Base of all errors that Omni raises on purpose."""

    code = "server_error"


class ConfigError(OmniError, ValueError):
    """A setting has a wrong name, type or value."""


class InputError(OmniError, ValueError):
    """Data from a user or client is not usable."""


class ModelError(OmniError):
    """A weight file or model folder is missing, corrupt or of an unknown kind."""


class FetchError(ModelError):
    """Weights could not be brought into the model store."""


class CapacityError(OmniError):
    """A stated limit is reached; the message names the limit and its value."""

    code = "rate_limit_exceeded"


class ContextLengthError(CapacityError):
    """More tokens than the context holds: asking again does not help, shortening does."""

    code = "context_length_exceeded"


class CancelledError(OmniError):
    """Work was stopped on request: an expected path."""
