"""A keep-alive WSGI server on gevent: idle connections cost a socket and one small object each."""

#: Of the server and the load test together; pyproject.toml reads it here.
__version__ = "0.1.0"
