"""The talking page: static files served at ``/``."""
